//! Label values: bounded, printable, escaped as the text exposition format wants.

use super::Family;

/// The longest label value, in characters: the longest DNS name.
pub(super) const MAX_CHARS: usize = 253;

/// What stands for a control character.
const REPLACEMENT: char = '\u{FFFD}';

/// The text of some labels that many samples have, written once: `name="value",name="value`. What follows them closes it.
#[derive(Debug)]
pub struct LabelText<const N: usize> {
    names: [&'static str; N],
    text: String,
}

impl Default for LabelText<0> {
    /// No labels.
    fn default() -> Self {
        Self { names: [], text: String::new() }
    }
}

impl<const N: usize> LabelText<N> {
    /// The labels of this family from the `from`th on, and of all families that have the same.
    ///
    /// # Panics
    /// When the family has fewer.
    pub fn of<K, const ALL: usize>(family: &Family<K, ALL>, from: usize, values: [&str; N]) -> Self {
        let names = std::array::from_fn(|at| family.labels[from + at]);
        let length = names.iter().chain(&values).map(|text| text.len() + 4).sum();
        let mut text = String::with_capacity(length);
        for (name, value) in names.iter().zip(values) {
            text.extend([if text.is_empty() { "" } else { "\"," }, name, "=\""]);
            push_value(&mut text, value);
        }
        Self { names, text }
    }

    pub(super) const fn names(&self) -> &[&'static str] {
        &self.names
    }

    pub(super) const fn text(&self) -> &str {
        self.text.as_str()
    }
}

/// Appends `value` as it stands between the quotes of a label: at most [`MAX_CHARS`] characters, control
/// characters replaced, `\` and `"` escaped.
pub(super) fn push_value(out: &mut String, value: &str) {
    // Bytes of 0xC2 begin the control characters U+0080 to U+009F, among others.
    let plain = |b: u8| b >= 0x20 && b != b'"' && b != b'\\' && b != 0x7f && b != 0xC2;
    // Every byte is looked at, whatever the ones before it are: that is done sixteen at a time.
    if value.len() <= MAX_CHARS && value.bytes().fold(true, |all, byte| all & plain(byte)) {
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
