//! What the engine sends for a container's log, into messages. Pure.
//!
//! The format is the engine's `GET /containers/{id}/logs` with `timestamps=1`. Without a terminal each message is
//! a frame: one byte that names the stream, three zero bytes, the length as four bytes (big endian), then that many
//! bytes; lengths may contain any byte, 0x0a too. With a terminal there are no frames, only messages one after the
//! other. In both forms a message begins with the engine's time and a blank. A message is a line with its line
//! end, or 16 KiB of a longer one without.
//!
//! Which form it is shows in the first byte: a stream has a number up to 3, a time begins with a digit.
//!
//! Always true: however the bytes are cut into calls of [`Frames::feed`], the events are the same, but for the
//! places where a text is cut into pieces. Nothing is kept but a head and a time.
//!
//! Not here: lines (`lines.rs`).

/// The engine reads a container's output with a buffer of this size, and logs it when it is full.
pub const PART_BYTES: usize = 16 * 1024;

/// No engine writes a longer time: 35 bytes with nanoseconds and an offset.
const STAMP_BYTES_MAX: usize = 40;

const HEAD_BYTES: usize = 8;

/// The largest number of a stream: the engine's own.
const STREAM_MAX: u8 = 3;

/// What a container wrote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Stdout = 0,
    Stderr = 1,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A message begins, with its time in nanoseconds since 1970; `None`: it has none that can be read.
    Message { side: Side, ns: Option<i64> },
    /// Some of its text.
    Text { side: Side, bytes: &'a [u8] },
    /// The engine itself says something, in one or more pieces.
    Complaint(&'a [u8]),
}

/// What comes is no log: what follows cannot be understood.
#[derive(Debug, PartialEq, Eq)]
pub struct Broken;

#[derive(Debug)]
enum Form {
    /// Nothing has come yet.
    Unknown,
    Framed {
        head: Gathered<HEAD_BYTES>,
        left: u32,
        from: From,
    },
    /// `run`: bytes of text since the last time, until it is certain that no further part can follow.
    Plain {
        run: Option<usize>,
        again: Option<usize>,
    },
}

#[derive(Clone, Copy, Debug)]
enum From {
    Container(Side),
    Engine,
}

#[derive(Debug)]
struct Gathered<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Gathered<N> {
    const EMPTY: Gathered<N> = Gathered { bytes: [0; N], len: 0 };

    fn push(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    fn get(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// One log, from its first byte on.
#[derive(Debug)]
pub struct Frames {
    form: Form,
    stamp: Gathered<STAMP_BYTES_MAX>,
    /// The message's time was read.
    stamped: bool,
}

impl Default for Frames {
    fn default() -> Frames {
        Frames { form: Form::Unknown, stamp: Gathered::EMPTY, stamped: false }
    }
}

impl Frames {
    /// The container has a terminal, as far as is known when `next` has come.
    pub fn is_plain_from(&self, next: &[u8]) -> bool {
        match self.form {
            Form::Unknown => next.first().is_some_and(|first| *first > STREAM_MAX),
            Form::Framed { .. } => false,
            Form::Plain { .. } => true,
        }
    }

    pub fn feed(&mut self, mut input: &[u8], each: &mut impl FnMut(Event<'_>)) -> Result<(), Broken> {
        while let Some(first) = input.first() {
            input = match &self.form {
                Form::Unknown => {
                    let framed =
                        Form::Framed { head: Gathered::EMPTY, left: 0, from: From::Container(Side::Stdout) };
                    self.form =
                        if *first <= STREAM_MAX { framed } else { Form::Plain { run: Some(0), again: None } };
                    input
                }
                Form::Framed { .. } => self.framed(input, each)?,
                Form::Plain { .. } => self.plain(input, each)?,
            };
        }
        Ok(())
    }

    /// The log is over: what looked like the time of a further part was text.
    pub fn end(&mut self, each: &mut impl FnMut(Event<'_>)) {
        if let Form::Plain { again, .. } = &mut self.form
            && let Some(matched) = again.take()
        {
            text(Side::Stdout, &self.stamp.get()[..matched], each);
        }
    }

    fn framed<'i>(&mut self, input: &'i [u8], each: &mut impl FnMut(Event<'_>)) -> Result<&'i [u8], Broken> {
        let Form::Framed { head, left, from } = &mut self.form else { return Ok(input) };
        if *left == 0 {
            head.push(input[0]);
            if head.len == HEAD_BYTES {
                *from = match head.bytes {
                    [0 | 1, 0, 0, 0, ..] => From::Container(Side::Stdout),
                    [2, 0, 0, 0, ..] => From::Container(Side::Stderr),
                    [3, 0, 0, 0, ..] => From::Engine,
                    _ => return Err(Broken),
                };
                let [.., a, b, c, d] = head.bytes;
                *left = u32::from_be_bytes([a, b, c, d]);
                head.len = 0;
                self.stamp.len = 0;
                self.stamped = false;
            }
            return Ok(&input[1..]);
        }
        let (payload, rest) = input.split_at(input.len().min(*left as usize));
        *left -= payload.len() as u32;
        let (from, over) = (*from, *left == 0);
        match from {
            From::Engine => each(Event::Complaint(payload)),
            From::Container(side) => {
                let bytes = self.stamp_of(side, payload, each);
                text(side, bytes, each);
                if over && !self.stamped {
                    self.without_stamp(side, each);
                }
            }
        }
        Ok(rest)
    }

    /// Takes the time from the front of a message; what is left is text.
    fn stamp_of<'i>(
        &mut self,
        side: Side,
        mut input: &'i [u8],
        each: &mut impl FnMut(Event<'_>),
    ) -> &'i [u8] {
        while !self.stamped
            && let Some((&byte, rest)) = input.split_first()
        {
            if byte == b' ' {
                let ns = parse(self.stamp.get());
                if ns.is_some() {
                    self.stamped = true;
                    each(Event::Message { side, ns });
                    return rest;
                }
            }
            if byte == b' ' || byte == b'\n' || self.stamp.len == STAMP_BYTES_MAX {
                self.without_stamp(side, each);
                return input;
            }
            self.stamp.push(byte);
            input = rest;
        }
        input
    }

    fn without_stamp(&mut self, side: Side, each: &mut impl FnMut(Event<'_>)) {
        self.stamped = true;
        each(Event::Message { side, ns: None });
        text(side, self.stamp.get(), each);
        self.stamp.len = 0;
    }

    /// A part of 16 KiB is followed by the time of its line once more. An engine that fails after it has promised a log
    /// (Podman) sends its error instead, an object of JSON: no message begins so, each has its time.
    fn plain<'i>(&mut self, input: &'i [u8], each: &mut impl FnMut(Event<'_>)) -> Result<&'i [u8], Broken> {
        let side = Side::Stdout;
        if !self.stamped {
            if self.stamp.len == 0 && input[0] == b'{' {
                return Err(Broken);
            }
            let rest = self.stamp_of(side, input, each);
            if let Form::Plain { run, .. } = &mut self.form {
                *run = (self.stamp.len > 0).then_some(0);
            }
            return Ok(rest);
        }
        let Form::Plain { run, again } = &mut self.form else { return Ok(input) };
        if let Some(matched) = again {
            let expected = self.stamp.get().get(*matched).copied().unwrap_or(b' ');
            if input[0] != expected {
                text(side, &self.stamp.get()[..*matched], each);
                (*run, *again) = (None, None);
                return Ok(input);
            }
            *matched += 1;
            if *matched > self.stamp.len {
                (*run, *again) = (Some(0), None);
            }
            return Ok(&input[1..]);
        }
        let most = run.map_or(input.len(), |run| input.len().min(PART_BYTES - run));
        let line_end = memchr::memchr(b'\n', &input[..most]);
        let (bytes, rest) = input.split_at(line_end.map_or(most, |at| at + 1));
        text(side, bytes, each);
        if line_end.is_some() {
            self.stamp.len = 0;
            self.stamped = false;
        } else if let Some(run) = run {
            *run += bytes.len();
            if *run == PART_BYTES {
                *again = Some(0);
            }
        }
        Ok(rest)
    }
}

fn text(side: Side, bytes: &[u8], each: &mut impl FnMut(Event<'_>)) {
    if !bytes.is_empty() {
        each(Event::Text { side, bytes });
    }
}

/// The bytes of a time as Docker writes it: nine digits of a fraction, UTC.
pub const STAMP_BYTES: usize = 30;

/// RFC 3339 into nanoseconds since 1970.
pub fn parse(stamp: &[u8]) -> Option<i64> {
    if let Some(ns) = parse_usual(stamp) {
        return Some(ns);
    }
    let time: jiff::Timestamp = std::str::from_utf8(stamp).ok()?.parse().ok()?;
    i64::try_from(time.as_nanosecond()).ok()
}

/// Docker's own form, without the detour: this is done for every line.
fn parse_usual(stamp: &[u8]) -> Option<i64> {
    const FORM: &[u8; STAMP_BYTES] = b"0000-00-00T00:00:00.000000000Z";
    let fits = |(byte, form): (&u8, &u8)| if *form == b'0' { byte.is_ascii_digit() } else { byte == form };
    if stamp.len() != STAMP_BYTES || !stamp.iter().zip(FORM).all(fits) {
        return None;
    }
    let number = |range: std::ops::Range<usize>| {
        stamp[range].iter().fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'))
    };
    let (year, month, day) = (number(0..4), number(5..7), number(8..10));
    let (hour, minute, second) = (number(11..13), number(14..16), number(17..19));
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // Days since 1970, counted in years that begin in March, so that the leap day is their last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    let seconds = days * 86_400 + hour * 3_600 + minute * 60 + second;
    seconds.checked_mul(1_000_000_000)?.checked_add(number(20..29))
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: &str = "2026-11-23T18:24:51.106223438Z";
    const NS: i64 = 1_795_458_291_106_223_438;

    fn frame(stream: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![stream, 0, 0, 0];
        frame.extend((payload.len() as u32).to_be_bytes());
        frame.extend(payload);
        frame
    }

    /// Messages with their whole text: `out 1795…438 text`, `out ? text`, `engine text`.
    fn told(input: &[u8], piece: usize) -> Result<Vec<String>, Broken> {
        let mut all: Vec<String> = Vec::new();
        let mut frames = Frames::default();
        let name = |side| if side == Side::Stdout { "out" } else { "err" };
        let mut each = |event: Event<'_>| match event {
            Event::Message { side, ns: Some(ns) } => all.push(format!("{} {ns} ", name(side))),
            Event::Message { side, ns: None } => all.push(format!("{} ? ", name(side))),
            Event::Text { side, bytes } => {
                let last = all.iter_mut().rfind(|text| text.starts_with(name(side))).unwrap();
                last.push_str(&String::from_utf8_lossy(bytes));
            }
            Event::Complaint(bytes) => all.push(format!("engine {}", String::from_utf8_lossy(bytes))),
        };
        for piece in input.chunks(piece) {
            frames.feed(piece, &mut each)?;
        }
        frames.end(&mut each);
        Ok(all)
    }

    /// The same however it is cut.
    fn check(input: &[u8], expected: &[&str]) {
        for piece in (1..=64.min(input.len())).chain([input.len()]) {
            assert_eq!(told(input, piece).unwrap(), expected, "in pieces of {piece}");
        }
    }

    #[test]
    fn frames_of_both_streams_split_at_every_byte() {
        let input = [
            frame(1, format!("{T} one\n").as_bytes()),
            frame(2, format!("{T} two\n").as_bytes()),
            frame(0, format!("{T} \n").as_bytes()),
            frame(1, b""),
        ];
        let (one, two, three) =
            (format!("out {NS} one\n"), format!("err {NS} two\n"), format!("out {NS} \n"));
        check(&input.concat(), &[&one, &two, &three]);
    }

    #[test]
    fn a_length_that_contains_a_line_end_is_a_length() {
        for len in [0x0a00, 0x0a0a, 0x0a0a0a] {
            let text = "x".repeat(len - T.len() - 1);
            let input = frame(1, format!("{T} {text}").as_bytes());
            assert_eq!(told(&input, 7).unwrap(), [format!("out {NS} {text}")]);
        }
    }

    #[test]
    fn a_message_without_a_time_keeps_its_text() {
        let input = [frame(1, b"no time\n"), frame(1, b"word"), frame(2, &[b'x'; 50])].concat();
        check(&input, &["out ? no time\n", "out ? word", &format!("err ? {}", "x".repeat(50))]);
        let seconds = frame(1, b"2026-11-23T19:24:51+01:00 podman\n");
        check(&seconds, &["out 1795458291000000000 podman\n"]);
    }

    #[test]
    fn the_engine_may_say_something_itself() {
        assert_eq!(told(&frame(3, b"gone"), 100).unwrap(), ["engine gone"]);
        assert_eq!(told(&[1, 0, 7, 0, 0, 0, 0, 1, 65], 3), Err(Broken));
    }

    #[test]
    fn an_end_within_a_frame_shows_what_there_was() {
        let whole = frame(1, format!("{T} whole\n").as_bytes());
        let cut = &frame(2, format!("{T} cut\n").as_bytes())[..HEAD_BYTES + T.len() + 3];
        check(&[&whole, cut].concat(), &[&format!("out {NS} whole\n"), &format!("err {NS} cu")]);
        check(&[&whole, &cut[..HEAD_BYTES + 5]].concat(), &[&format!("out {NS} whole\n")]);
    }

    #[test]
    fn a_terminal_has_no_frames() {
        let part = "a".repeat(PART_BYTES);
        let other = "2026-11-23T18:24:51.106223439Z";
        let input = format!("{T} one\r\n{T} \r\n{T} {part}{T} {part}{T} end\r\n{other} half");
        let long = format!("out {NS} {part}{part}end\r\n");
        let expected =
            [format!("out {NS} one\r\n"), format!("out {NS} \r\n"), long, format!("out {} half", NS + 1)];
        for piece in [1, 2, 31, 16_000, input.len()] {
            assert_eq!(told(input.as_bytes(), piece).unwrap(), expected, "in pieces of {piece}");
        }
    }

    #[test]
    fn an_error_in_the_place_of_a_log_is_none() {
        let said = r#"{"cause":"no such container","message":"no container with name","response":404}"#;
        let after_a_frame = [frame(1, format!("{T} one\n").as_bytes()), said.into()].concat();
        for input in [said.as_bytes(), format!("{T} one\r\n{said}\n").as_bytes(), &after_a_frame] {
            for piece in [1, 7, input.len()] {
                assert_eq!(told(input, piece), Err(Broken), "in pieces of {piece}");
            }
        }
        let text = format!("{T} {said}\n");
        check(text.as_bytes(), &[&format!("out {NS} {said}\n")]);
    }

    #[test]
    fn text_that_only_looks_like_a_further_part_is_text() {
        let part = "a".repeat(PART_BYTES);
        for after in [&T[..10], "b", &T[..29], ""] {
            let input = format!("{T} {part}{after}");
            assert_eq!(told(input.as_bytes(), 999).unwrap(), [format!("out {NS} {part}{after}")]);
        }
    }

    #[test]
    fn times_into_nanoseconds() {
        for (text, ns) in [
            ("1970-01-01T00:00:00.000000000Z", Some(0)),
            ("1969-12-31T23:59:59.999999999Z", Some(-1)),
            ("2000-02-29T12:00:00.000000001Z", Some(951_825_600_000_000_001)),
            ("2024-12-31T23:59:59.5Z", Some(1_735_689_599_500_000_000)),
            ("2024-02-30T00:00:00Z", None),
            ("2024-13-01T00:00:00.000000000Z", None),
            ("9999-12-31T23:59:59.000000000Z", None),
            ("yesterday", None),
        ] {
            assert_eq!(parse(text.as_bytes()), ns, "{text}");
        }
    }
}
