//! The objects of a list, one by one as they come: a list of ten thousand needs the memory of one. Pure.

use serde::Deserialize;

use super::watch::Objects;

/// The longest object: etcd takes none of more than 1.5 MiB, and JSON may need more letters for it.
const MAX_OBJECT: usize = 16 << 20;
/// The longest list without its objects.
const MAX_REST: usize = 1 << 20;

/// A list (or a page of one) that is being read.
#[derive(Debug, Default)]
pub struct Page {
    /// Braces and brackets that are open.
    depth: u32,
    /// Whether the items are being read.
    within: bool,
    string: Option<Escape>,
    /// The object that has begun.
    object: Vec<u8>,
    /// The list without its objects.
    rest: Vec<u8>,
    /// Objects so far.
    count: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Escape {
    No,
    Next,
}

/// What a list says of itself (`v1` `ListMeta`).
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListMetadata {
    /// The version to watch from.
    pub resource_version: String,
    /// What the next page is asked for with; empty on the last.
    #[serde(rename = "continue")]
    pub next: String,
    /// How many objects further pages have, where the server says so.
    pub remaining_item_count: Option<u64>,
}

#[derive(Deserialize)]
struct List {
    metadata: ListMetadata,
}

impl Page {
    /// Takes a piece, and puts the objects that end in it.
    ///
    /// # Errors
    /// When an object is none of this kind, or is too long.
    pub fn take<O: Objects>(&mut self, piece: &[u8], objects: &mut O) -> Result<(), String> {
        for byte in piece {
            if self.within && self.depth == 2 && self.string.is_none() {
                match byte {
                    b'{' => {}
                    b']' => self.within = false,
                    b',' => continue,
                    byte if byte.is_ascii_whitespace() => continue,
                    _ => return Err("an item of the list is no object".to_owned()),
                }
            }
            let (to, most) = if self.within { (&mut self.object, MAX_OBJECT) } else { (&mut self.rest, MAX_REST) };
            if to.len() == most {
                return Err(format!("something in the list has more than {most} bytes"));
            }
            to.push(*byte);
            self.step(*byte);
            if self.within && self.depth == 2 && *byte == b'}' && self.string.is_none() {
                let object = serde_json::from_slice(&self.object).map_err(|error| error.to_string())?;
                self.object.clear();
                self.count += 1;
                objects.put(object);
            }
        }
        Ok(())
    }

    fn step(&mut self, byte: u8) {
        match (self.string, byte) {
            (Some(Escape::Next), _) => self.string = Some(Escape::No),
            (Some(Escape::No), b'\\') => self.string = Some(Escape::Next),
            (Some(Escape::No), b'"') => self.string = None,
            (Some(Escape::No), _) => {}
            (None, b'"') => self.string = Some(Escape::No),
            (None, b'{' | b'[') => {
                self.depth += 1;
                self.within |= self.depth == 2 && byte == b'[' && ends_with_items(&self.rest);
            }
            (None, b'}' | b']') => self.depth = self.depth.saturating_sub(1),
            (None, _) => {}
        }
    }

    /// What the list says of itself, at its end, and how many objects it had.
    ///
    /// # Errors
    /// When it is no list, or has not ended.
    pub fn end(self) -> Result<(ListMetadata, u64), String> {
        let list: List = serde_json::from_slice(&self.rest).map_err(|error| error.to_string())?;
        if list.metadata.resource_version.is_empty() {
            return Err("the list has no resourceVersion".to_owned());
        }
        Ok((list.metadata, self.count))
    }
}

/// Whether the bracket that stands last opens the items. In a list every other value of this name is deeper.
fn ends_with_items(rest: &[u8]) -> bool {
    let before = rest.strip_suffix(b"[").unwrap_or(rest).trim_ascii_end();
    before.strip_suffix(b":").is_some_and(|key| key.trim_ascii_end().ends_with(b"\"items\""))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::identity::kube::watch::Object;

    /// All objects as they are.
    #[derive(Default)]
    struct All(Vec<Value>);

    impl Object for Value {
        fn version(&self) -> &str {
            self["metadata"]["resourceVersion"].as_str().unwrap_or_default()
        }
    }

    impl Objects for All {
        type Object = Value;

        fn begin(&mut self) {
            self.0.clear();
        }

        fn put(&mut self, object: Value) {
            self.0.push(object);
        }

        fn complete(&mut self) {}

        fn remove(&mut self, _: Value) {}
    }

    fn read(text: &[u8], pieces: usize) -> Result<(Vec<Value>, ListMetadata), String> {
        let (mut page, mut all) = (Page::default(), All::default());
        for piece in text.chunks(pieces) {
            page.take(piece, &mut all)?;
        }
        let (metadata, count) = page.end()?;
        assert_eq!(count, all.0.len() as u64);
        Ok((all.0, metadata))
    }

    #[test]
    fn a_recorded_list_in_pieces() {
        let text = include_bytes!("../../../tests/fixtures/kubernetes/api-list.json");
        let whole: Value = serde_json::from_slice(text).unwrap();
        for pieces in [1, 7, 1000, usize::MAX] {
            let (items, metadata) = read(text, pieces).unwrap();
            assert_eq!(json!(items), whole["items"], "{pieces}");
            assert_eq!(metadata.resource_version, whole["metadata"]["resourceVersion"]);
        }
    }

    #[test]
    fn pages_say_what_follows() {
        let text = br#"{"items" : [ {"a":"]}\"{"} , {} ],
            "metadata":{"resourceVersion":"5","continue":"next","remainingItemCount":7}}"#;
        let (items, metadata) = read(text, 3).unwrap();
        assert_eq!(items, [json!({"a":"]}\"{"}), json!({})]);
        assert_eq!((metadata.next.as_str(), metadata.remaining_item_count), ("next", Some(7)));
        let empty = read(br#"{"metadata":{"resourceVersion":"5"},"items":null}"#, 5).unwrap();
        assert_eq!((empty.0.len(), empty.1.next.as_str()), (0, ""));
    }

    #[test]
    fn what_is_no_list() {
        for text in [
            &b""[..],
            b"{}",
            br#"{"items":[],"metadata":{}}"#,
            br#"{"items":[5],"metadata":{"resourceVersion":"5"}}"#,
            br#"{"items":[{}"#,
            br#"{"items":[{}],"metadata":{"resourceVersion":"5"}"#,
            br#"{"items":[{,}],"metadata":{"resourceVersion":"5"}}"#,
            br#"{"items":{},"metadata":{"resourceVersion":5}}"#,
        ] {
            assert!(read(text, 100).is_err(), "{}", String::from_utf8_lossy(text));
        }
        let long = [b"{\"items\":[{\"a\":\"".as_slice(), &vec![b'x'; MAX_OBJECT]].concat();
        assert!(read(&long, 1 << 16).unwrap_err().contains("more than"));
        let long = [b"{\"x\":\"".as_slice(), &vec![b'x'; MAX_REST]].concat();
        assert!(read(&long, 1 << 16).unwrap_err().contains("more than"));
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf =
            prop_oneof![Just(Value::Null), any::<i32>().prop_map(Value::from), any::<String>().prop_map(Value::from)];
        leaf.prop_recursive(3, 20, 4, |inner| {
            let key = prop_oneof![Just("items".to_owned()), Just("a\\".to_owned()), any::<String>()];
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(key, inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_list_is_read_as_serde_reads_it(
            values in proptest::collection::vec(value(), 0..6), before in value(), pieces in 1..50usize, pretty: bool,
        ) {
            let items: Vec<Value> = values.into_iter().map(|value| json!({ "items": value })).collect();
            let list = json!({ "before": before, "items": items, "metadata": { "resourceVersion": "1" } });
            let text = if pretty { serde_json::to_vec_pretty(&list) } else { serde_json::to_vec(&list) }.unwrap();
            prop_assert_eq!(read(&text, pieces).unwrap().0, items);
        }

        #[test]
        fn nonsense_is_an_error_and_no_panic(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(read(&text, 7));
        }
    }
}
