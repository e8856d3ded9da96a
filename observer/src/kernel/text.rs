//! Strings of a fixed length, as pinned records have them.

/// The text before the first zero byte; of what is not UTF-8, as much as is.
pub(crate) fn read(bytes: &[u8]) -> &str {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes[..end].utf8_chunks().next().map_or("", |chunk| chunk.valid())
}

/// As much of the text as fits, cut between characters, and a zero byte.
pub(crate) fn bytes<const N: usize>(text: &str) -> [u8; N] {
    let mut end = text.len().min(N - 1);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut bytes = [0; N];
    bytes[..end].copy_from_slice(&text.as_bytes()[..end]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_cut_between_characters() {
        let cut = bytes::<8>("abcdefé");
        assert_eq!(&cut, b"abcdef\0\0");
        assert_eq!(read(&cut), "abcdef");
        assert_eq!(read(b"ab\xff\xfe"), "ab");
    }
}
