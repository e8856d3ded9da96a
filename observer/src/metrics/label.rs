//! Label values: bounded, printable, escaped as the text exposition format wants.

/// The longest label value, in characters: the longest DNS name.
pub(super) const MAX_CHARS: usize = 253;

/// What stands for a control character.
const REPLACEMENT: char = '\u{FFFD}';

/// Appends `value` as it stands between the quotes of a label: at most [`MAX_CHARS`] characters, control
/// characters replaced, `\` and `"` escaped.
pub(super) fn push_value(out: &mut String, value: &str) {
    // Bytes of 0xC2 begin the control characters U+0080 to U+009F, among others.
    let plain = |b: u8| b >= 0x20 && b != b'"' && b != b'\\' && b != 0x7f && b != 0xC2;
    if value.len() <= MAX_CHARS && value.bytes().all(plain) {
        out.push_str(value);
        return;
    }
    for c in value.chars().take(MAX_CHARS) {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c if c.is_control() => out.push(REPLACEMENT),
            c => out.push(c),
        }
    }
}

/// Appends a help text: `\` and line ends escaped.
pub(super) fn push_help(out: &mut String, help: &str) {
    for c in help.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> String {
        let mut out = String::new();
        push_value(&mut out, text);
        out
    }

    #[test]
    fn values_are_escaped_bounded_and_printable() {
        assert_eq!(value("web-1"), "web-1");
        assert_eq!(value("a\"b\\c"), "a\\\"b\\\\c");
        assert_eq!(value("a\nb\0\u{7f}\u{85}"), "a\u{FFFD}b\u{FFFD}\u{FFFD}\u{FFFD}");
        assert_eq!(value("café £"), "café £");
        assert_eq!(value(&"é".repeat(1000)).chars().count(), MAX_CHARS);
        assert_eq!(value(&"x".repeat(254)).len(), MAX_CHARS);
        assert_eq!(value(&"\"".repeat(300)).len(), 2 * MAX_CHARS);
    }
}
