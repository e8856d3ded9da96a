//! Where the fields of this kernel's structures are, from its own type information.
//!
//! Programs in Rust carry no relocations, so what reads a kernel structure gets the offsets of its fields as
//! constants, set before it is verified. The format is described in the kernel's Documentation/bpf/btf.rst; what is
//! read here are the records of structures, unions and what refers to them. Pure but for [`Btf::of_this_kernel`].

use std::{collections::HashMap, io, path::PathBuf};

/// Where the kernel shows its types.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
/// How deep anonymous structures are looked into; the kernel nests three or four.
const MAX_DEPTH: usize = 8;
/// How many members are looked at for one field. The kernel's largest structures have some hundreds; anonymous ones that
/// contain each other would otherwise take a time that grows with the power of the depth.
const MAX_MEMBERS: usize = 100_000;

/// `enum BTF_KIND_*` of include/uapi/linux/btf.h, as far as sizes or references depend on it.
mod kind {
    pub const INT: u32 = 1;
    pub const PTR: u32 = 2;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

/// Why offsets cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The kernel shows no types.
    #[error("cannot read {path}: {source}; the probe needs a kernel with CONFIG_DEBUG_INFO_BTF")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Not the format that it should be.
    #[error("the kernel's type information is broken: {0}")]
    Broken(&'static str),
    /// This kernel has no such structure or field.
    #[error("this kernel's {structure} has no {field}")]
    Field {
        /// The structure.
        structure: String,
        /// The path of fields.
        field: String,
    },
}

/// Types of a kernel.
pub struct Btf {
    bytes: Vec<u8>,
    strings: usize,
    /// Where each type's record begins, by type id less one.
    records: Vec<usize>,
    structures: HashMap<String, usize>,
}

/// One record's fixed part.
struct Record {
    kind: u32,
    vlen: usize,
    name: usize,
    flag: bool,
    /// `size` or `type`.
    info: u32,
    /// Where what follows begins.
    body: usize,
}

impl Btf {
    /// The types of the running kernel.
    ///
    /// # Errors
    ///
    /// See [`BtfError`].
    pub fn of_this_kernel() -> Result<Self, BtfError> {
        let bytes = std::fs::read(VMLINUX).map_err(|source| BtfError::Read { path: VMLINUX.into(), source })?;
        Self::parse(bytes)
    }

    /// Reads types. Numbers are in this machine's byte order, as the kernel's are.
    ///
    /// # Errors
    ///
    /// [`BtfError::Broken`].
    pub fn parse(bytes: Vec<u8>) -> Result<Self, BtfError> {
        let word = |at| read_u32(&bytes, at).ok_or(BtfError::Broken("its header is cut short"));
        let magic = bytes.get(..2).map(|b| u16::from_ne_bytes([b[0], b[1]]));
        if magic != Some(MAGIC) {
            return Err(BtfError::Broken("it does not begin with the magic number"));
        }
        // struct btf_header: magic, version, flags, hdr_len, type_off, type_len, str_off, str_len
        let header = word(4)? as usize;
        let types = header + word(8)? as usize;
        let types_end = types + word(12)? as usize;
        let strings = header + word(16)? as usize;
        let mut found =
            Self { bytes, strings, records: Vec::with_capacity(1 << 17), structures: HashMap::with_capacity(1 << 14) };
        let mut at = types;
        while at < types_end {
            let record = found.record(at).ok_or(BtfError::Broken("a record is cut short"))?;
            found.records.push(at);
            if record.kind == kind::STRUCT
                && let Some(name) = found.string(record.name)
                && !name.is_empty()
            {
                let name = name.to_owned();
                found.structures.entry(name).or_insert(at);
            }
            at = record.body + tail(&record).ok_or(BtfError::Broken("a record is of an unknown kind"))?;
        }
        Ok(found)
    }

    /// The offset in bytes of a field of a structure; `path` may go down through members that are structures
    /// themselves (`__sk_common.skc_cookie`), never through pointers.
    ///
    /// # Errors
    ///
    /// [`BtfError::Field`], for a bit field too.
    pub fn offset(&self, structure: &str, path: &str) -> Result<u32, BtfError> {
        let missing = || BtfError::Field { structure: format!("struct {structure}"), field: path.to_owned() };
        let mut at = *self.structures.get(structure).ok_or_else(missing)?;
        let mut bits: u32 = 0;
        let mut left = MAX_MEMBERS;
        for field in path.split('.') {
            let (offset, member) = self.member(at, field, 0, &mut left).ok_or_else(missing)?;
            bits = bits.checked_add(offset).ok_or_else(missing)?;
            at = self.strip(member).unwrap_or(at);
        }
        if bits.is_multiple_of(8) { Ok(bits / 8) } else { Err(missing()) }
    }

    /// Like [`Btf::offset`] for the first of several places where kernels have had a field.
    ///
    /// # Errors
    ///
    /// [`BtfError::Field`] for the last of them.
    pub fn first_offset(&self, places: &[(&str, &str)]) -> Result<u32, BtfError> {
        let mut result = Err(BtfError::Broken("no place was asked for"));
        for (structure, path) in places {
            result = self.offset(structure, path);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// True when the argument `index` (from 0) of the tracepoint `name` is a pointer; `None` when this kernel has no
    /// such tracepoint or it has fewer arguments. (`typedef void (*btf_trace_NAME)(void *, …)`, made by
    /// `__DEFINE_EVENT` in include/trace/bpf_probe.h.)
    #[must_use]
    pub fn tracepoint_argument_is_pointer(&self, name: &str, index: usize) -> Option<bool> {
        let arguments = self.tracepoint_arguments(name)?;
        // The first is the tracepoint's own data.
        let argument = *arguments.get(index + 1)?;
        Some(self.resolve(argument)?.kind == kind::PTR)
    }

    /// The number of arguments of a tracepoint.
    #[must_use]
    pub fn tracepoint_argument_count(&self, name: &str) -> Option<usize> {
        Some(self.tracepoint_arguments(name)?.len().saturating_sub(1))
    }

    fn tracepoint_arguments(&self, name: &str) -> Option<Vec<u32>> {
        let wanted = format!("btf_trace_{name}");
        let typedef = self
            .records
            .iter()
            .filter_map(|at| self.record(*at))
            .find(|r| r.kind == kind::TYPEDEF && self.string(r.name) == Some(&wanted))?;
        let pointer = self.resolve(typedef.info)?;
        let proto = self.resolve(pointer.info)?;
        if pointer.kind != kind::PTR || proto.kind != kind::FUNC_PROTO {
            return None;
        }
        // struct btf_param: name_off, type
        (0..proto.vlen).map(|n| read_u32(&self.bytes, proto.body + n * 8 + 4)).collect()
    }

    /// The values of an enumeration by name: those of the first enumeration that has the value `member`.
    #[must_use]
    pub fn enumeration_with(&self, member: &str) -> Option<HashMap<u32, String>> {
        self.records.iter().filter_map(|at| self.record(*at)).filter(|r| r.kind == kind::ENUM).find_map(|record| {
            let values: HashMap<u32, String> = (0..record.vlen)
                .filter_map(|n| {
                    let name = self.string(read_u32(&self.bytes, record.body + n * 8)? as usize)?;
                    Some((read_u32(&self.bytes, record.body + n * 8 + 4)?, name.to_owned()))
                })
                .collect();
            values.values().any(|name| name == member).then_some(values)
        })
    }

    /// A member's offset in bits from the beginning of the structure at `at`, and its type, if it is among the next
    /// `left` members.
    fn member(&self, at: usize, name: &str, depth: usize, left: &mut usize) -> Option<(u32, u32)> {
        let record = self.record(at)?;
        if depth > MAX_DEPTH || !matches!(record.kind, kind::STRUCT | kind::UNION) {
            return None;
        }
        for n in 0..record.vlen {
            *left = left.checked_sub(1)?;
            // struct btf_member: name_off, type, offset
            let place = record.body + n * 12;
            let own = self.string(read_u32(&self.bytes, place)? as usize)?;
            let member = read_u32(&self.bytes, place + 4)?;
            let word = read_u32(&self.bytes, place + 8)?;
            // With the flag the upper byte is the width of a bit field.
            let (offset, width) = if record.flag { (word & 0xff_ffff, word >> 24) } else { (word, 0) };
            if !own.is_empty() && own == name {
                return (width == 0).then_some((offset, member));
            }
            if own.is_empty()
                && let Some(inner) = self.strip(member)
                && let Some((below, member)) = self.member(inner, name, depth + 1, left)
            {
                return Some((offset.checked_add(below)?, member));
            }
        }
        None
    }

    /// Where the type behind typedefs and qualifiers stands.
    fn strip(&self, id: u32) -> Option<usize> {
        let mut id = id;
        for _ in 0..32 {
            let at = *self.records.get((id as usize).checked_sub(1)?)?;
            let record = self.record(at)?;
            match record.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => id = record.info,
                _ => return Some(at),
            }
        }
        None
    }

    fn resolve(&self, id: u32) -> Option<Record> {
        self.record(self.strip(id)?)
    }

    fn record(&self, at: usize) -> Option<Record> {
        let info = read_u32(&self.bytes, at + 4)?;
        Some(Record {
            name: read_u32(&self.bytes, at)? as usize,
            kind: info >> 24 & 0x1f,
            vlen: (info & 0xffff) as usize,
            flag: info >> 31 == 1,
            info: read_u32(&self.bytes, at + 8)?,
            body: at + 12,
        })
    }

    fn string(&self, offset: usize) -> Option<&str> {
        let bytes = self.bytes.get(self.strings + offset..)?;
        let end = bytes.iter().position(|b| *b == 0)?;
        std::str::from_utf8(&bytes[..end]).ok()
    }
}

/// Bytes behind a record's fixed part.
const fn tail(record: &Record) -> Option<usize> {
    Some(match record.kind {
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        kind::ARRAY => 12,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => record.vlen * 12,
        kind::ENUM | kind::FUNC_PROTO => record.vlen * 8,
        // Pointers, forward declarations, typedefs, qualifiers, functions, floats, tags.
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct outer { int a; struct { int b:4; const inner c; }; }` with `typedef struct inner { int d; } inner`.
    fn sample() -> Vec<u8> {
        let mut strings = vec![0u8];
        let mut name = |text: &str| {
            let at = strings.len() as u32;
            strings.extend_from_slice(text.as_bytes());
            strings.push(0);
            at
        };
        let info = |kind: u32, vlen: u32, flag: bool| u32::from(flag) << 31 | kind << 24 | vlen;
        let mut types: Vec<u32> = Vec::new();
        // 1: int
        types.extend([name("int"), info(kind::INT, 0, false), 4, 32]);
        // 2: struct inner
        types.extend([name("inner"), info(kind::STRUCT, 1, false), 4, name("d"), 1, 0]);
        // 3: const, 4: typedef
        types.extend([0, info(kind::CONST, 0, false), 4]);
        types.extend([name("inner"), info(kind::TYPEDEF, 0, false), 2]);
        // 5: the anonymous one, with a bit field
        types.extend([0, info(kind::STRUCT, 2, true), 8, name("b"), 1, 4 << 24, name("c"), 3, 32]);
        // 6: struct outer
        types.extend([name("outer"), info(kind::STRUCT, 2, false), 12, name("a"), 1, 0, 0, 5, 32]);
        // 7: an enumeration
        types.extend([name("reasons"), info(kind::ENUM, 2, false), 4, name("NOT_YET"), 0, name("NO_SOCKET"), 3]);
        // 8: pointer, 9: prototype, 10: pointer to it, 11: the typedef of a tracepoint
        types.extend([0, info(kind::PTR, 0, false), 6]);
        types.extend([0, info(kind::FUNC_PROTO, 3, false), 0, 0, 8, 0, 8, 0, 1]);
        types.extend([0, info(kind::PTR, 0, false), 9]);
        types.extend([name("btf_trace_happened"), info(kind::TYPEDEF, 0, false), 10]);
        let types: Vec<u8> = types.into_iter().flat_map(u32::to_ne_bytes).collect();
        let mut bytes = Vec::new();
        bytes.extend(MAGIC.to_ne_bytes());
        bytes.extend([1, 0]);
        for word in [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn fields_are_found_through_names_and_without() {
        let btf = Btf::parse(sample()).unwrap();
        assert_eq!(btf.offset("outer", "a").unwrap(), 0);
        assert_eq!(btf.offset("outer", "c").unwrap(), 8);
        assert_eq!(btf.offset("outer", "c.d").unwrap(), 8);
        assert_eq!(btf.offset("inner", "d").unwrap(), 0);
        assert_eq!(btf.first_offset(&[("outer", "z"), ("outer", "c")]).unwrap(), 8);
        for (structure, path) in [("outer", "b"), ("outer", "d"), ("none", "a"), ("outer", "a.x"), ("outer", "")] {
            let error = btf.offset(structure, path).unwrap_err().to_string();
            assert!(error.contains(structure) && error.contains(path), "{error}");
        }
    }

    #[test]
    fn tracepoints_tell_their_arguments() {
        let btf = Btf::parse(sample()).unwrap();
        assert_eq!(btf.tracepoint_argument_is_pointer("happened", 0), Some(true));
        assert_eq!(btf.tracepoint_argument_is_pointer("happened", 1), Some(false));
        assert_eq!(btf.tracepoint_argument_is_pointer("happened", 2), None);
        assert_eq!(btf.tracepoint_argument_is_pointer("other", 0), None);
        assert_eq!(btf.tracepoint_argument_count("happened"), Some(2));
        assert_eq!(btf.enumeration_with("NO_SOCKET").unwrap()[&3], "NO_SOCKET");
        assert!(btf.enumeration_with("NOTHING").is_none());
    }

    /// A blob of nothing but `struct a`, whose members, all without a name, are what `members` says: type and offset.
    fn nested(members: &[(u32, u32)]) -> Vec<u8> {
        let mut types = vec![1, kind::STRUCT << 24 | members.len() as u32, 8];
        types.extend(members.iter().flat_map(|(member, offset)| [0, *member, *offset]));
        let length = types.len() as u32 * 4;
        let mut bytes: Vec<u8> = MAGIC.to_ne_bytes().into_iter().chain([1, 0]).collect();
        bytes.extend([24, 0, length, length, 3].into_iter().chain(types).flat_map(u32::to_ne_bytes));
        bytes.extend(b"\0a\0");
        bytes
    }

    #[test]
    fn structures_within_themselves_end() {
        let btf = Btf::parse(nested(&[(1, u32::MAX); 600])).unwrap();
        assert!(btf.offset("a", "b").is_err());
    }

    #[test]
    fn offsets_that_no_number_holds_are_no_offsets() {
        let mut bytes = nested(&[(1, 1 << 31)]);
        // Its one member is called what the structure is called.
        bytes[24 + 12..24 + 16].copy_from_slice(&1u32.to_ne_bytes());
        let half = Btf::parse(bytes).unwrap();
        assert_eq!(half.offset("a", "a").unwrap(), 1 << 28);
        assert!(half.offset("a", "a.a").is_err());
    }

    #[test]
    fn what_is_cut_short_is_an_error_or_lacks_fields() {
        let whole = sample();
        for length in 0..whole.len() {
            if let Ok(btf) = Btf::parse(whole[..length].to_vec()) {
                let _ = btf.offset("outer", "c.d");
                let _ = btf.tracepoint_argument_count("happened");
            }
        }
        assert!(Btf::parse(vec![0; 64]).is_err());
    }

    #[test]
    fn this_kernel_has_a_socket() {
        let Ok(btf) = Btf::of_this_kernel() else { return };
        assert_eq!(btf.offset("sock", "__sk_common").unwrap(), 0);
        assert!(btf.offset("task_struct", "signal").unwrap() > 0);
    }
}
