//! What the fuzz targets call.

use observer_common::dns::{Head, LARGE, flags};

use super::{parse, stream::Streams};

/// Reads `bytes` as a message that is whole, as one that was cut off, and as its own beginning.
///
/// # Panics
/// When the parser does, or when a message says other things than its whole.
pub fn message(bytes: &[u8]) {
    let whole = parse::parse(bytes, true);
    let cut = parse::parse(bytes, false);
    if let Ok(whole) = whole {
        let cut = cut.expect("what can be read when it is whole can be read when it may not be");
        assert_eq!((cut.id, cut.response, &cut.question), (whole.id, whole.response, &whole.question));
        let name = whole.question.map(|question| question.name).unwrap_or_default();
        assert!(name.len() <= 255 && !name.contains(['"', '\\', '\n']), "{name:?}");
    }
    let _ = parse::parse(&bytes[..bytes.len() / 2], false);
}

/// Reads `bytes` as segments of TCP, each with a head of [`SEGMENT`] bytes, and as one stream that is cut in two ways.
///
/// # Panics
/// When the reader does, tells more than it was given, or tells something else of a stream that is cut otherwise.
pub fn stream(bytes: &[u8]) {
    segments(bytes);
    if let Some((cut, bytes)) = bytes.split_first() {
        let cut = usize::from(*cut) + 1;
        assert_eq!(messages(bytes, cut), messages(bytes, LARGE), "cut after each {cut} bytes, and as few as can be");
    }
}

/// Flags, the container's port, how far the sequence number is off, bytes that were captured, sixteenths of those that were
/// not.
const SEGMENT: usize = 5;

fn segments(mut bytes: &[u8]) {
    let mut streams = Streams::default();
    // Near the end of sequence numbers, for each direction.
    let mut next = [u32::MAX - 100; 2];
    let mut at = 0;
    while let Some((&[flags, port, off, captured, cut], rest)) = bytes.split_first_chunk::<SEGMENT>() {
        let (known, rest) = rest.split_at(rest.len().min(captured.into()));
        bytes = rest;
        at += 1;
        let next = &mut next[usize::from(flags & flags::EGRESS != 0)];
        let length = u32::try_from(known.len()).unwrap_or(0) + 16 * u32::from(cut);
        let head = Head {
            flags,
            local_port: port.into(),
            sequence: next.wrapping_add_signed(i32::from(off.cast_signed())),
            length,
            at,
            ..Head::default()
        };
        let mut told = 0;
        streams.take(&head, known, |message, _| {
            told += 1;
            assert!(message.len() <= LARGE, "{} bytes of a message were kept", message.len());
        });
        // A message may have begun earlier; each further one has its length in this segment.
        assert!(told <= 1 + known.len() / 2, "{told} messages in {} bytes", known.len());
        *next = next.wrapping_add(length + u32::from(flags & flags::SYN != 0));
    }
    assert!(streams.open() <= super::stream::MAX_STREAMS, "{} connections are followed", streams.open());
}

/// The messages of a stream that comes in segments of so many bytes.
fn messages(bytes: &[u8], cut: usize) -> Vec<(Vec<u8>, bool)> {
    let mut streams = Streams::default();
    let mut told = Vec::new();
    let mut sequence = u32::MAX - 100;
    let mut take = |flags, known: &[u8]| {
        let length = u32::try_from(known.len()).unwrap_or(0);
        let head = Head { flags, sequence, length, ..Head::default() };
        let read = streams.take(&head, known, |message, whole| told.push((message.to_vec(), whole)));
        assert!(read, "a stream without a gap has lost its place");
        sequence = sequence.wrapping_add(length + u32::from(flags & flags::SYN != 0));
    };
    take(flags::EGRESS | flags::SYN, &[]);
    for segment in bytes.chunks(cut) {
        take(flags::EGRESS, segment);
    }
    told
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        /// What the fuzz targets do, with far fewer bytes.
        #[test]
        fn no_bytes_make_it_panic(
            bytes in vec(any::<u8>(), 0..400),
            segments in vec((0..8u8, 0..4u8, -3..4i8, 0..40u8, 0..3u8), 0..40),
            lengths in vec(0..2000u16, 0..6),
        ) {
            message(&bytes);
            stream(&bytes);
            let direction = |flags: u8| (flags & 7) | (flags & 4) << 5;
            let payload = |length: u8| bytes.iter().copied().cycle().take(if bytes.is_empty() { 0 } else { length.into() });
            stream(&segments.iter().flat_map(|(flags, port, off, length, cut)| {
                [direction(*flags), *port, off.cast_unsigned(), *length, *cut].into_iter().chain(payload(*length))
            }).collect::<Vec<_>>());
            stream(&lengths.iter().flat_map(|length| {
                length.to_be_bytes().into_iter().chain(vec![7; usize::from(*length)])
            }).collect::<Vec<_>>());
        }
    }
}
