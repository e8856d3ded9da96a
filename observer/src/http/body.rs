//! The body of an answer that is made of several parts: sent as they are, without being put together first.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    vec::IntoIter,
};

use axum::body::{Bytes, HttpBody};
use http_body::{Frame, SizeHint};

/// Parts that follow one another, each freed once it is sent.
pub(super) struct Parts {
    parts: IntoIter<Vec<u8>>,
    left: u64,
}

impl From<Vec<Vec<u8>>> for Parts {
    fn from(parts: Vec<Vec<u8>>) -> Self {
        let left = parts.iter().map(|part| part.len() as u64).sum();
        Self { parts: parts.into_iter(), left }
    }
}

impl HttpBody for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.parts.next();
        self.left -= next.as_ref().map_or(0, |part| part.len() as u64);
        Poll::Ready(next.map(|part| Ok(Frame::data(part.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.parts.len() == 0
    }

    /// Known, so that the answer tells its length.
    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
