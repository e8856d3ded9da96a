use super::*;

/// A name in wire format.
pub fn name(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in text.split('.').filter(|label| !label.is_empty()) {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

/// A question for `text`.
pub fn question(id: u16, text: &str, qtype: u16) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    bytes.extend(name(text));
    bytes.extend(qtype.to_be_bytes());
    bytes.extend([0, 1]);
    bytes
}

/// The answer to it with these records: owner in wire format, type, data.
pub fn answer(id: u16, text: &str, qtype: u16, rcode: u8, records: &[(&[u8], u16, &[u8])]) -> Vec<u8> {
    let mut bytes = question(id, text, qtype);
    bytes[2] |= 0x80;
    bytes[3] = rcode;
    bytes[7] = u8::try_from(records.len()).unwrap();
    for (owner, rtype, data) in records {
        bytes.extend(*owner);
        bytes.extend(rtype.to_be_bytes());
        bytes.extend([0, 1, 0, 0, 0, 60]);
        bytes.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        bytes.extend(*data);
    }
    bytes
}

/// Points at the question's name.
pub const SAME: &[u8] = &[0xc0, 12];

#[test]
fn a_question_is_read() {
    let parsed = parse(&question(7, "Web.Example.ORG", 28), true).unwrap();
    assert!(!parsed.response && parsed.id == 7);
    let asked = parsed.question.unwrap();
    assert_eq!((asked.name.as_str(), asked.qtype), ("web.example.org", Qtype::Aaaa));
    let again = parse(&question(8, "wEB.example.org", 28), true).unwrap().question.unwrap();
    assert_eq!(again.digest, asked.digest);
    let other = parse(&question(8, "web.example.org", 1), true).unwrap().question.unwrap();
    assert_ne!(other.digest, asked.digest);
}

#[test]
fn addresses_at_the_end_of_a_chain_belong_to_the_name_that_was_asked() {
    let target = name("edge.cdn.test");
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 5);
    let bytes = answer(
        1,
        "www.example.org",
        1,
        0,
        &[(SAME, 5, &target), (&target, 1, &[203, 0, 113, 9]), (&target, 28, &v6.octets())],
    );
    let parsed = parse(&bytes, true).unwrap();
    assert_eq!(parsed.question.unwrap().name, "www.example.org");
    assert_eq!(parsed.addresses, [IpAddr::from([203, 0, 113, 9]), v6.into()]);
}

#[test]
fn every_rcode_has_a_label() {
    for (number, label) in [(0, "NOERROR"), (1, "FORMERR"), (2, "SERVFAIL"), (3, "NXDOMAIN"), (5, "REFUSED")] {
        assert_eq!(parse(&answer(1, "a.b", 1, number, &[]), true).unwrap().rcode.as_str(), label);
    }
    assert_eq!(parse(&answer(1, "a.b", 1, 9, &[]), true).unwrap().rcode, Rcode::Other);
    // BADVERS: 0 in the header, 1 in the upper bits, in an OPT record (RFC 6891).
    let mut extended = answer(1, "a.b", 1, 0, &[]);
    extended[11] = 1;
    extended.extend([0, 0, 41, 4, 208, 1, 0, 0, 0, 0, 0]);
    assert_eq!(parse(&extended, true).unwrap().rcode, Rcode::Other);
}

#[test]
fn an_answer_without_its_question_is_still_one() {
    let bytes = [0, 9, 0x80, 5, 0, 0, 0, 0, 0, 0, 0, 0];
    let parsed = parse(&bytes, true).unwrap();
    assert_eq!((parsed.id, parsed.rcode, parsed.question), (9, Rcode::Refused, None));
}

#[test]
fn what_was_cut_is_read_as_far_as_it_goes() {
    let bytes = answer(1, "a.b", 1, 0, &[(SAME, 1, &[203, 0, 113, 1]), (SAME, 1, &[203, 0, 113, 2])]);
    for length in 0..bytes.len() {
        assert_eq!(parse(&bytes[..length], true), Err(Malformed), "{length}");
    }
    let cut = parse(&bytes[..bytes.len() - 1], false).unwrap();
    assert_eq!(cut.addresses, [IpAddr::from([203, 0, 113, 1])]);
    let mut says_so = bytes[..bytes.len() - 1].to_vec();
    says_so[2] |= 0x02;
    assert_eq!(parse(&says_so, true).unwrap().addresses.len(), 1);
}

#[test]
fn hostile_messages_are_malformed() {
    let mut itself = question(1, "", 1);
    itself.splice(12..13, [0xc0, 12]);
    let mut forward = question(1, "", 1);
    forward.splice(12..13, [0xc0, 14, 0xc0, 12]);
    let mut reserved = question(1, "a", 1);
    reserved[12] = 0x81;
    let mut long = question(1, "", 1);
    long.splice(12..13, (0..5).flat_map(|_| name(&"x".repeat(63))[..64].to_vec()).chain([0]));
    let mut two = question(1, "a", 1);
    two[5] = 2;
    let mut promises = answer(1, "a", 1, 0, &[]);
    promises[6..12].fill(0xff);
    let loops = answer(1, "a", 1, 0, &[(&[0xc0, 19], 1, &[0xc0, 19, 0, 0])]);
    let short_address = answer(1, "a", 1, 0, &[(SAME, 1, &[1, 2, 3])]);
    for (what, bytes) in [
        ("pointer to itself", itself),
        ("pointers in a circle", forward),
        ("reserved label type", reserved),
        ("name too long", long),
        ("two questions", two),
        ("promises 65535 records", promises),
        ("owner points at itself", loops),
        ("address of three bytes", short_address),
        ("nothing", Vec::new()),
    ] {
        assert_eq!(parse(&bytes, true), Err(Malformed), "{what}");
    }
}

#[test]
fn names_that_are_not_plain_are_not_shown() {
    for bad in ["a b.org", "a\u{e4}.org", "a\"b.org", "a\\b.org"] {
        assert_eq!(parse(&question(1, bad, 1), true).unwrap().question.unwrap().name, "", "{bad}");
    }
    assert_eq!(parse(&question(1, "_dns._udp.a-b.org", 33), true).unwrap().question.unwrap().name, "_dns._udp.a-b.org");
    assert_eq!(parse(&question(1, ".", 2), true).unwrap().question.unwrap().name, "");
}

/// Numbers that look random and are the same each time (xorshift).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }
}

#[test]
fn whatever_comes_it_neither_panics_nor_grows() {
    let target = name("edge.cdn.test");
    let seed = answer(1, "www.example.org", 1, 0, &[(SAME, 5, &target), (&target, 1, &[203, 0, 113, 9])]);
    let mut random = Random(42);
    let mut read = 0;
    for _ in 0..200_000 {
        let mut bytes = seed.clone();
        for _ in 0..=random.below(6) {
            let at = random.below(bytes.len());
            bytes[at] = random.next().to_le_bytes()[0];
        }
        bytes.truncate(random.below(bytes.len() + 1));
        if let Ok(parsed) = parse(&bytes, random.below(2) == 0) {
            read += 1;
            assert!(parsed.addresses.len() <= MAX_ADDRESSES);
            assert!(parsed.question.is_none_or(|question| question.name.len() <= NAME_LEN));
        }
    }
    assert!(read > 1_000, "only {read} could be read");
}
