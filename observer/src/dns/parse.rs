//! One DNS message (RFC 1035), read as far as it is counted by. Pure; nothing in a message makes it panic or allocate
//! more than a name and the addresses of its answers.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use domain::{
    base::{Message, ParsedName, Rtype, iana::Class, name::ToLabelIter},
    rdata::{A, Aaaa},
};
use observer_common::dns::NAME_LEN;

use super::codes::{Qtype, Rcode};

/// Addresses that are taken from one answer.
const MAX_ADDRESSES: usize = 32;

/// The message cannot be read: no whole header, more than one question, or a name or record that does not end inside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// What is read of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// The number that joins question and answer.
    pub id: u16,
    /// An answer, not a question.
    pub response: bool,
    /// How it went; meaningless in a question.
    pub rcode: Rcode,
    /// What was asked. Some servers leave it out of an error.
    pub question: Option<Question>,
    /// The addresses in the answer.
    pub addresses: Vec<IpAddr>,
}

/// What was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The name without the trailing dot; empty when it is not made of letters, digits, `-` and `_`. In lower case, in which it
    /// means the same (RFC 4343): resolvers that ask in random case (draft-vixie-dnsext-dns0x20) would else have a label value
    /// for each question.
    pub name: String,
    /// The type of record.
    pub qtype: Qtype,
    /// A hash of name and type, that question and answer have in common.
    pub digest: u64,
}

/// Reads a message. `whole` says that its end was not cut off; of a message that was cut, or that says so itself, the
/// answers are read as far as they go.
///
/// # Errors
///
/// See [`Malformed`].
pub fn parse(bytes: &[u8], whole: bool) -> Result<Parsed, Malformed> {
    let message = Message::from_octets(bytes).map_err(|_| Malformed)?;
    let header = message.header();
    if message.header_counts().qdcount() > 1 {
        return Err(Malformed);
    }
    let question = match message.question().next() {
        None => None,
        Some(Err(_)) => return Err(Malformed),
        Some(Ok(question)) => Some(Question {
            name: plain_name(question.qname()),
            qtype: Qtype::of(question.qtype().to_int()),
            digest: digest(question.qname(), question.qtype().to_int()),
        }),
    };
    let mut parsed = Parsed {
        id: header.id(),
        response: header.qr(),
        rcode: Rcode::of(header.rcode().to_int().into()),
        question,
        addresses: Vec::new(),
    };
    if !parsed.response {
        return Ok(parsed);
    }
    let complete = addresses(&message, &mut parsed.addresses).is_some();
    if !complete && whole && !header.tc() {
        return Err(Malformed);
    }
    if complete {
        // The upper bits stand in the OPT record (RFC 6891, section 6.1.3), when there is one.
        parsed.rcode = Rcode::of(message.opt_rcode().to_int());
    }
    Ok(parsed)
}

/// `None` when the section cannot be read to its end.
fn addresses(message: &Message<&[u8]>, into: &mut Vec<IpAddr>) -> Option<()> {
    for record in message.answer().ok()? {
        let record = record.ok()?;
        if record.class() != Class::IN || into.len() >= MAX_ADDRESSES {
            continue;
        }
        match record.rtype() {
            Rtype::A => {
                let record = record.to_record::<A>().ok()??;
                into.push(Ipv4Addr::from(record.data().addr().octets()).into());
            }
            Rtype::AAAA => {
                let record = record.to_record::<Aaaa>().ok()??;
                into.push(Ipv6Addr::from(record.data().addr().octets()).into());
            }
            _ => {}
        }
    }
    Some(())
}

/// The name as a label value, or empty: names are bounded, and only plain ones are shown.
fn plain_name(name: &ParsedName<&[u8]>) -> String {
    let mut text = String::new();
    for label in name.iter_labels().filter(|label| !label.is_root()) {
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if !label.as_slice().iter().all(plain) || text.len() + label.len() >= NAME_LEN {
            return String::new();
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.as_slice().iter().map(|byte| char::from(byte.to_ascii_lowercase())));
    }
    text
}

fn digest(name: &ParsedName<&[u8]>, qtype: u16) -> u64 {
    let mut hasher = DefaultHasher::new();
    for label in name.iter_labels() {
        // Resolvers may answer in another case than they were asked (draft-vixie-dnsext-dns0x20).
        label.as_slice().len().hash(&mut hasher);
        label.as_slice().iter().for_each(|byte| byte.to_ascii_lowercase().hash(&mut hasher));
    }
    qtype.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
#[path = "parse_tests.rs"]
pub(super) mod tests;
