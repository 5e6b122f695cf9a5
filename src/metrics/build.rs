//! What runs here.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::metrics::family::{Book, gauges};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Running {
    version: &'static str,
    role: &'static str,
}

pub struct Build {
    info: Family<Running, Gauge>,
}

impl Build {
    pub(super) fn register(book: &mut Book) -> Self {
        Self { info: gauges(book, "build_info", "Always 1; the labels say what runs here") }
    }

    /// This process has begun as `role`.
    pub fn begun(&self, role: &'static str) {
        self.info.get_or_create(&Running { version: env!("CARGO_PKG_VERSION"), role }).set(1);
    }
}
