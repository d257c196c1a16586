//! A push to Loki as somebody would write it by hand who wants nothing but speed: the measure for the agent's own
//! encoder. The same message (`logproto.PushRequest`), one stream, no checks.

/// Source bytes in one push: the agent's default.
pub const PUSH_BYTES: usize = 1 << 20;

/// Five bytes of varint are kept free for the length of the stream.
const LENGTH_BYTES: usize = 5;

/// Begins the only stream of a push.
pub fn open(out: &mut Vec<u8>, labels: &str) {
    out.clear();
    out.push(0x0a);
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    out.push(0x0a);
    varint(out, labels.len() as u64);
    out.extend_from_slice(labels.as_bytes());
}

/// One line, without its line end.
pub fn line(out: &mut Vec<u8>, time_ns: u64, line: &[u8]) {
    let (seconds, nanos) = (time_ns / 1_000_000_000, time_ns % 1_000_000_000);
    let time_len = 2 + varint_len(seconds) + varint_len(nanos);
    let line_len = 1 + varint_len(line.len() as u64) + line.len();
    out.push(0x12);
    varint(out, (2 + time_len + line_len) as u64);
    out.extend_from_slice(&[0x0a, time_len as u8, 0x08]);
    varint(out, seconds);
    out.push(0x10);
    varint(out, nanos);
    out.push(0x12);
    varint(out, line.len() as u64);
    out.extend_from_slice(line);
}

/// Writes the length of the stream.
pub fn close(out: &mut [u8]) {
    let length = out.len() - 1 - LENGTH_BYTES;
    for (index, byte) in out[1..=LENGTH_BYTES].iter_mut().enumerate() {
        let more = if index + 1 < LENGTH_BYTES { 0x80 } else { 0 };
        *byte = (length >> (7 * index)) as u8 & 0x7f | more;
    }
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn varint_len(value: u64) -> usize {
    (70 - (value | 1).leading_zeros() as usize) / 7
}
