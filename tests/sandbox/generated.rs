//! Tables of docs/security.md that tests make, between `<!-- NAME: made by tests … -->` and `<!-- end of NAME -->`.
//! `KAGE_WRITE_GOLDEN=1` writes them anew; otherwise they are compared.

use std::path::PathBuf;

use kage::sandbox::engine::Engine;

/// On which engine and kernel a table was made. On others what they answer may differ.
pub struct Place(String);

impl Place {
    pub async fn of(engine: &Engine) -> Self {
        let info = engine.info().await.expect("the engine answers");
        Self(format!("engine {}, kernel {}, {}", info.version, info.kernel, info.architecture))
    }
}

/// Compares; on another engine or kernel than the table's it only shows both.
pub fn generated(name: &str, text: &str, place: Place) {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/security.md"));
    let document = std::fs::read_to_string(&path).expect("reads");
    let (begin, end) = (format!("<!-- {name}: made by tests/sandbox on "), format!("<!-- end of {name} -->"));
    let (before, rest) =
        document.split_once(&begin).unwrap_or_else(|| panic!("no {begin:?} in docs/security.md"));
    let (found, after) = rest.split_once(&end).unwrap_or_else(|| panic!("no {end:?} in docs/security.md"));
    let (made_on, found) = found.split_once(" -->\n").expect("a marker ends");
    let made = format!("\n{}\n\n", text.trim());
    if std::env::var_os("KAGE_WRITE_GOLDEN").is_some() {
        let document = format!("{before}{begin}{} -->\n{made}{end}{after}", place.0);
        std::fs::write(path, document).expect("writes");
    } else if made_on == place.0 {
        assert!(
            found == made,
            "docs/security.md has another {name}; KAGE_WRITE_GOLDEN=1 writes it anew:\n{made}"
        );
    } else {
        println!("{name} was made on {made_on}, and this is {}:\n{made}", place.0);
    }
}
