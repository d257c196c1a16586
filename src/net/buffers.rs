//! What a request is put together in, and an answer is read into.
//!
//! Always true: it is as large as what was sent, not as what could be. A full body goes out in few writes, and a sink
//! that has hardly anything to send holds a page or two, since what is filled with zeros is resident.

use std::fmt;

use ureq::unversioned::transport::{Buffers, LazyBuffers};

/// Holds the head of a request and the body of a quiet source.
const OUTPUT_BYTES_LEAST: usize = 16 * 1024;

pub(super) struct Growing {
    /// The one for answers; its own output is never asked for anything.
    input: LazyBuffers,
    output: Vec<u8>,
    wanted: usize,
    most: usize,
}

impl Growing {
    /// `input` and `most`, of the output, in bytes.
    pub fn new(input: usize, most: usize) -> Growing {
        Growing {
            input: LazyBuffers::new(input, 1),
            output: Vec::new(),
            wanted: OUTPUT_BYTES_LEAST.min(most),
            most,
        }
    }

    /// So many bytes of the output were sent. One that was full was too small.
    pub fn sent(&mut self, amount: usize) {
        if amount >= self.wanted {
            self.wanted = (2 * self.wanted).min(self.most);
        }
    }

    fn grow(&mut self) {
        if self.output.len() < self.wanted {
            self.output = vec![0; self.wanted]; // nothing stands in it between two writes
        }
    }
}

impl Buffers for Growing {
    fn output(&mut self) -> &mut [u8] {
        self.grow();
        &mut self.output
    }

    fn tmp_and_output(&mut self) -> (&mut [u8], &mut [u8]) {
        self.grow();
        (self.input.tmp_and_output().0, &mut self.output)
    }

    fn input(&self) -> &[u8] {
        self.input.input()
    }

    fn input_append_buf(&mut self) -> &mut [u8] {
        self.input.input_append_buf()
    }

    fn input_appended(&mut self, amount: usize) {
        self.input.input_appended(amount);
    }

    fn input_consume(&mut self, amount: usize) {
        self.input.input_consume(amount);
    }

    fn can_use_input(&self) -> bool {
        self.input.can_use_input()
    }
}

impl fmt::Debug for Growing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Growing")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_as_large_as_what_is_sent() {
        let mut buffers = Growing::new(1024, 100 * 1024);
        let mut check = |sent: usize, len: usize| {
            buffers.sent(sent);
            assert_eq!(buffers.output().len(), len, "after {sent} bytes");
            assert_eq!(buffers.tmp_and_output().1.len(), len);
        };
        check(0, 16 * 1024);
        check(16 * 1024 - 1, 16 * 1024);
        check(16 * 1024, 32 * 1024);
        check(32 * 1024, 64 * 1024);
        check(64 * 1024, 100 * 1024);
        check(100 * 1024, 100 * 1024);
        assert_eq!(Growing::new(10, 20).output().len(), 20);
    }
}
