//! From the events of a watch to objects (kubernetes.io/docs/reference/using-api/api-concepts). Pure.

use serde::{Deserialize, de::DeserializeOwned};

/// The longest event: etcd takes no object of more than 1.5 MiB, and JSON may need more letters for it.
const MAX_EVENT: usize = 16 << 20;

/// An object of the API, as far as it is read.
pub trait Object: DeserializeOwned {
    /// The version that it stands for: `metadata.resourceVersion`.
    fn version(&self) -> &str;
}

/// Objects of one kind.
pub trait Objects {
    /// One of them.
    type Object: Object;

    /// A list of all begins. What was put for one that did not end counts for nothing.
    fn begin(&mut self);

    /// One of a list, or one that is new or has changed.
    fn put(&mut self, object: Self::Object);

    /// The list has ended: these are all.
    fn complete(&mut self);

    /// One that is gone.
    fn remove(&mut self, object: Self::Object);
}

/// Up to which version objects are known.
#[derive(Debug, Default)]
pub struct Progress {
    version: String,
}

/// What an event means.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Objects have changed.
    Changed,
    /// Only the version has.
    Same,
    /// What happened meanwhile cannot be told any more: ask for a list. With the server's words.
    Expired(String),
}

#[derive(Deserialize)]
#[serde(tag = "type", content = "object", rename_all = "UPPERCASE")]
enum Event<T> {
    Added(T),
    Modified(T),
    Deleted(T),
    Bookmark(Bookmark),
    Error(Status),
}

#[derive(Deserialize)]
struct Bookmark {
    metadata: BookmarkMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BookmarkMetadata {
    resource_version: String,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    message: String,
    #[serde(default)]
    code: u16,
}

impl Progress {
    /// The version to watch from; `None` before the first list.
    pub fn version(&self) -> Option<&str> {
        Some(self.version.as_str()).filter(|version| !version.is_empty())
    }

    /// A list of this version was taken, or an object.
    pub fn reached(&mut self, version: &str) {
        if !version.is_empty() {
            version.clone_into(&mut self.version);
        }
    }

    /// Takes one event.
    ///
    /// # Errors
    /// When it is none.
    pub fn event<O: Objects>(&mut self, line: &[u8], objects: &mut O) -> Result<Outcome, String> {
        let event: Event<O::Object> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        Ok(match event {
            Event::Added(object) | Event::Modified(object) => {
                self.reached(object.version());
                objects.put(object);
                Outcome::Changed
            }
            Event::Deleted(object) => {
                self.reached(object.version());
                objects.remove(object);
                Outcome::Changed
            }
            Event::Bookmark(bookmark) => {
                self.reached(&bookmark.metadata.resource_version);
                Outcome::Same
            }
            Event::Error(status) => Outcome::Expired(format!("{} ({})", status.message, status.code)),
        })
    }
}

/// Pieces of a stream, put together to lines.
#[derive(Default)]
pub struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Takes a piece and gives the lines that end in it.
    ///
    /// # Errors
    /// When a line is too long.
    pub fn take(&mut self, piece: &[u8]) -> Result<Vec<Vec<u8>>, String> {
        let mut lines = Vec::new();
        let mut piece = piece;
        while let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(&piece[..end]);
            lines.push(std::mem::take(&mut self.rest));
            piece = &piece[end + 1..];
        }
        self.rest.extend_from_slice(piece);
        if self.rest.len() > MAX_EVENT {
            return Err(format!("an event has more than {MAX_EVENT} bytes"));
        }
        lines.retain(|line| !line.iter().all(u8::is_ascii_whitespace));
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_put_together() {
        let mut lines = Lines::default();
        assert!(lines.take(b"ab").unwrap().is_empty());
        assert_eq!(lines.take(b"c\nd\n\r\n\ne").unwrap(), [b"abc".to_vec(), b"d".to_vec()]);
        assert_eq!(lines.take(b"\n").unwrap(), [b"e"]);
        assert!(lines.take(&vec![b'x'; MAX_EVENT]).unwrap().is_empty());
        assert!(lines.take(b"x").unwrap_err().contains("bytes"));
    }
}
