//! What an engine's builder prints, for people.

/// What programs say of a certificate that they do not trust: OpenSSL, Python, curl, Node.
const UNTRUSTED: [&str; 7] = [
    "certificate_verify_failed",
    "certificate verify failed",
    "self-signed certificate",
    "self signed certificate",
    "self_signed_cert",
    "unable to get local issuer certificate",
    "unable_to_get_issuer_cert",
];

/// A build's output so far.
#[derive(Debug, Default)]
pub struct BuildLog {
    untrusted: bool,
}

impl BuildLog {
    /// The lines of a piece of output, without colours and empty ones. They are not yet harmless on a terminal.
    pub fn lines(&mut self, text: &str) -> Vec<String> {
        let plain = console::strip_ansi_codes(text);
        let lower = plain.to_ascii_lowercase();
        self.untrusted |= UNTRUSTED.iter().any(|words| lower.contains(words));
        plain.split(['\r', '\n']).filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
    }

    /// Whether a program of the build met a certificate that it did not trust.
    pub const fn untrusted(&self) -> bool {
        self.untrusted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_go_and_a_distrusted_certificate_is_noticed() {
        let mut log = BuildLog::default();
        assert_eq!(log.lines("\u{1b}[91mnpm error one\r\n\n two\u{1b}[0m"), ["npm error one", " two"]);
        assert!(!log.untrusted());
        // What is no colour stays, for whoever makes it harmless to show.
        assert_eq!(log.lines("a\u{1}b"), ["a\u{1}b"]);
        for said in [
            "\u{1b}[91mnpm error code SELF_SIGNED_CERT_IN_CHAIN\u{1b}[0m",
            "SSLError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate')",
            "curl: (60) SSL certificate problem: unable to get local issuer certificate",
        ] {
            let mut log = BuildLog::default();
            log.lines(said);
            assert!(log.untrusted(), "{said}");
        }
    }
}
