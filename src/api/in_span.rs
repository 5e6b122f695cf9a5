//! An answer's body that is made while it is read, an event stream above all: what is logged meanwhile has the request's id too.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use hyper::body::{Frame, SizeHint};
use tracing::Span;

struct InSpan {
    body: Body,
    span: Span,
}

/// `span`: of the log alone; a trace's would last as long as the stream.
pub(super) fn in_span(body: Body, span: Span) -> Body {
    Body::new(InSpan { body, span })
}

impl hyper::body::Body for InSpan {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Self { body, span } = &mut *self;
        let _in = span.enter();
        Pin::new(body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
