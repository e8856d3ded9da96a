//! Which of the known words was probably meant.

/// The candidate nearest to `word`, unless even that one is too far to be what was meant. Pure.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let (distance, best) = candidates.into_iter().map(|c| (distance(word, c), c)).min()?;
    (distance <= 2 + word.chars().count().min(24) / 4).then_some(best)
}

/// Levenshtein's distance; case, `-` and `_` count as the same.
fn distance(a: &str, b: &str) -> usize {
    let fold = |c: char| if c == '_' { '-' } else { c.to_ascii_lowercase() };
    let b: Vec<char> = b.chars().map(fold).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().map(fold).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [&str; 3] = ["web.listen-address", "log.level", "traffic.edges"];

    #[test]
    fn finds_what_was_meant() {
        assert_eq!(nearest("web.listen_address", KEYS), Some("web.listen-address"));
        assert_eq!(nearest("web.listen-adress", KEYS), Some("web.listen-address"));
        assert_eq!(nearest("log.levl", KEYS), Some("log.level"));
        assert_eq!(nearest("Traffic.Edge", KEYS), Some("traffic.edges"));
        assert_eq!(nearest("completely.different", KEYS), None);
        assert_eq!(nearest("x", []), None);
    }
}
