//! How keys look: at the start of a word a beginning that says whose it is, then so many characters of a kind. Beginnings, alphabets and
//! lengths as vendors publish them and as secret scanners look for them.

/// The characters of a key after its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alphabet {
    /// Letters and digits.
    Base62,
    /// Those, `-` and `_`.
    Url,
    /// Those and `.`, of web tokens.
    Dotted,
    /// Those, `+`, `/` and `=`.
    Base64,
    /// Capitals and digits.
    Capitals,
    Hex,
}

impl Alphabet {
    pub const fn has(self, byte: u8) -> bool {
        match self {
            Self::Base62 => byte.is_ascii_alphanumeric(),
            Self::Url => byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'),
            Self::Dotted => byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'),
            Self::Base64 => byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'='),
            Self::Capitals => byte.is_ascii_uppercase() || byte.is_ascii_digit(),
            Self::Hex => byte.is_ascii_hexdigit(),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Form {
    pub start: &'static str,
    pub alphabet: Alphabet,
    /// Characters after the beginning, at least.
    pub least: usize,
    /// And at most: what is longer is taken for a key up to there.
    pub most: usize,
}

const fn form(start: &'static str, alphabet: Alphabet, least: usize) -> Form {
    Form { start, alphabet, least, most: MOST }
}

use Alphabet::{Base62, Base64, Capitals, Dotted, Hex, Url};

const MOST: usize = 2048;

/// Our own keys, which have a checksum too (`domain::api_key`).
pub const OURS: Form = Form { most: 49, ..form("kage_", Url, 49) };

pub const FORMS: [Form; 62] = [
    OURS,
    // Models.
    form("sk-ant-", Url, 20),
    form("sk-proj-", Url, 20),
    form("sk-svcacct-", Url, 20),
    form("sk-admin-", Url, 20),
    form("sk-or-v1-", Hex, 40),
    form("sk-", Base62, 32),
    form("AIza", Url, 35),
    form("GOCSPX-", Url, 20),
    form("ya29.", Url, 20),
    form("hf_", Base62, 30),
    form("gsk_", Base62, 40),
    form("xai-", Base62, 40),
    form("pplx-", Base62, 40),
    form("r8_", Base62, 37),
    form("nvapi-", Url, 40),
    // Clouds.
    form("AKIA", Capitals, 16),
    form("ASIA", Capitals, 16),
    form("ABIA", Capitals, 16),
    form("ACCA", Capitals, 16),
    form("dop_v1_", Hex, 64),
    form("doo_v1_", Hex, 64),
    form("dor_v1_", Hex, 64),
    form("dapi", Hex, 32),
    form("LTAI", Base62, 16),
    form("tskey-", Url, 20),
    // Code.
    form("ghp_", Base62, 36),
    form("gho_", Base62, 36),
    form("ghu_", Base62, 36),
    form("ghs_", Dotted, 36),
    form("ghr_", Base62, 36),
    form("github_pat_", Url, 40),
    form("glpat-", Dotted, 20),
    form("gldt-", Url, 20),
    form("glrt-", Dotted, 20),
    form("glptt-", Hex, 40),
    form("glcbt-", Url, 20),
    form("npm_", Base62, 36),
    form("pypi-AgEIcHlwaS5vcmc", Url, 50),
    form("rubygems_", Hex, 48),
    form("dckr_pat_", Url, 27),
    form("ATATT3xFfGF0", Url, 60),
    form("ATCTT3xFfGF0", Url, 60),
    form("lin_api_", Base62, 40),
    form("ntn_", Base62, 40),
    // Messages and money.
    form("xoxb-", Url, 20),
    form("xoxp-", Url, 20),
    form("xoxa-", Url, 20),
    form("xoxr-", Url, 20),
    form("xoxs-", Url, 20),
    form("xapp-", Url, 20),
    form("SG.", Dotted, 60),
    form("sk_live_", Base62, 20),
    form("rk_live_", Base62, 20),
    form("shpat_", Hex, 32),
    // Other secrets.
    form("hvs.", Url, 20),
    form("hvb.", Url, 20),
    form("hvr.", Url, 20),
    form("dp.pt.", Base62, 40),
    form("ops_eyJ", Base64, 100),
    form("AGE-SECRET-KEY-1", Capitals, 58),
    form("PMAK-", Url, 50),
];
