//! Archives in the "newc" form that the kernel takes as initramfs (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_755;
const DEVICE: u32 = 0o020_600;

/// Writes an archive.
pub(super) struct Archive<W> {
    output: W,
    entries: u32,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(output: W) -> Self {
        Self { output, entries: 0 }
    }

    pub(super) fn directory(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, DIRECTORY, (0, 0), &[])
    }

    pub(super) fn file(&mut self, name: &str, contents: &[u8]) -> io::Result<()> {
        self.entry(name, FILE, (0, 0), contents)
    }

    /// A character device with its numbers.
    pub(super) fn device(&mut self, name: &str, numbers: (u32, u32)) -> io::Result<()> {
        self.entry(name, DEVICE, numbers, &[])
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.output.flush()
    }

    fn entry(&mut self, name: &str, mode: u32, numbers: (u32, u32), contents: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let length = u32::try_from(contents.len()).map_err(io::Error::other)?;
        let name_length = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        // Inode, mode, owner, group, links, time, size, device, device of the file, length of the name, no checksum.
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            length,
            0,
            0,
            numbers.0,
            numbers.1,
            name_length,
            0,
        ];
        let mut header = "070701".to_owned();
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        header.push_str(name);
        header.push('\0');
        self.padded(header.as_bytes())?;
        self.padded(contents)
    }

    fn padded(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes)?;
        let padding = bytes.len().next_multiple_of(4) - bytes.len();
        self.output.write_all(&[0; 3][..padding])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_padded_to_four_bytes() {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        archive.file("init", b"hello").unwrap();
        archive.finish().unwrap();
        assert_eq!(&bytes[..14], b"07070100000001");
        assert_eq!(&bytes[110..115], b"init\0");
        assert_eq!(&bytes[116..124], b"hello\0\0\0");
        assert_eq!(bytes.len() % 4, 0);
    }
}
