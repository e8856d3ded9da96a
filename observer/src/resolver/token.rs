//! The token that agents show.

use std::path::PathBuf;

use anyhow::{Context, ensure};

/// The longest token.
const MAX_TOKEN: usize = 64 << 10;

/// A token in a file. The file is read again each time, so that it may change.
#[derive(Debug, Clone)]
pub struct Token {
    file: PathBuf,
}

impl Token {
    /// The token in this file.
    pub const fn new(file: PathBuf) -> Self {
        Self { file }
    }

    /// Whether the value of the header `authorization` shows it (RFC 6750, 2.1).
    ///
    /// # Errors
    /// When the file cannot be read, or holds no token.
    pub async fn is(&self, shown: &[u8]) -> anyhow::Result<bool> {
        let shown = shown.strip_prefix(b"Bearer ");
        let token = self.read().await?;
        Ok(shown.is_some_and(|shown| equal(shown, token.as_bytes())))
    }

    /// The token.
    ///
    /// # Errors
    /// As [`Token::is`].
    pub async fn read(&self) -> anyhow::Result<String> {
        let file = self.file.display();
        let text = tokio::fs::read_to_string(&self.file)
            .await
            .with_context(|| format!("cannot read the token file {file} (--resolver.token-file)"))?;
        let token = text.trim();
        let sound = !token.is_empty() && token.len() <= MAX_TOKEN && token.bytes().all(|byte| byte.is_ascii_graphic());
        ensure!(sound, "no token is in {file} (--resolver.token-file): one line of visible ASCII is expected");
        Ok(token.to_owned())
    }
}

/// In the same time wherever they differ, so that nobody finds a token byte by byte.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |all, (a, b)| std::hint::black_box(all | (a ^ b))) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_file_says_who_is_let_in() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        let token = Token::new(file.clone());
        assert!(token.is(b"Bearer x").await.unwrap_err().to_string().contains("--resolver.token-file"));
        std::fs::write(&file, "\n").unwrap();
        assert!(token.is(b"Bearer ").await.unwrap_err().to_string().contains("no token"));
        std::fs::write(&file, "secret\n").unwrap();
        assert!(token.is(b"Bearer secret").await.unwrap());
        for wrong in [&b""[..], b"secret", b"Bearer", b"Bearer ", b"Bearer secre", b"Bearer secreT", b"Bearer secret\n"]
        {
            assert!(!token.is(wrong).await.unwrap(), "{wrong:?}");
        }
        std::fs::write(&file, "another").unwrap();
        assert!(!token.is(b"Bearer secret").await.unwrap());
    }
}
