use proptest::prelude::*;
use secrecy::SecretBox;

use crate::trail::checkpoint::{self, Checkpoint};
use crate::trail::error::TrailError;
use crate::trail::note::*;

/// Keys and note of the reference implementation's own example.
const SIGNER: &str = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
const VERIFIER: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
const NOTE: &str = "If you think cryptography is the answer to your problem,\n\
    then you don't know what your problem is.\n\
    \n\
    — PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

pub fn key(name: &str, kind: Kind, seed: u8) -> SignerKey {
    SignerKey::new(name, kind, &SecretBox::new(Box::new([seed; 32]))).unwrap()
}

fn checkpoint(origin: &str) -> Checkpoint {
    Checkpoint { origin: origin.to_owned(), size: 20_852_163, root: [7; 32] }
}

#[test]
fn signs_and_reads_what_the_reference_does() {
    let signer = SignerKey::parse(&SIGNER.into()).unwrap();
    let verifier = VerifierKey::parse(VERIFIER).unwrap();
    assert_eq!(signer.verifier(), verifier);
    assert_eq!(verifier.to_string(), VERIFIER);
    assert_eq!(secrecy::ExposeSecret::expose_secret(&signer.to_secret()), SIGNER);
    let note = Note::parse(NOTE).unwrap();
    assert_eq!(note.to_string(), NOTE);
    assert_eq!(note.verify(&verifier).unwrap(), None);
    assert_eq!(signer.sign(&note.text, 0), note.signatures[0]);
    assert!(!format!("{signer:?}").contains("AYEKFALV"));
}

#[test]
fn a_checkpoint_has_one_form() {
    let text = "example.com/log\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";
    let checkpoint = Checkpoint::parse(text).unwrap();
    assert_eq!((checkpoint.size, checkpoint.to_string().as_str()), (20_852_163, text));
    for wrong in [
        "",
        "\n",
        "example.com/log\n20852163\n",
        &text[..text.len() - 1],
        &format!("{text}extension\n"),
        &format!("{text}\n"),
        &text.replace("208", "+208"),
        &text.replace("208", "0208"),
        &text.replace("example.com/log", ""),
        &text.replace("2I=", "2J="),
        &text.replace("20852163", "9223372036854775808"),
        &text.replace("CsUY", ""),
    ] {
        assert!(Checkpoint::parse(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn only_the_logs_own_key_opens_a_checkpoint() {
    let log = key("kage.example/audit", Kind::Log, 1);
    let note = checkpoint("kage.example/audit").sign(&log);
    let (text, public) = (note.to_string(), log.verifier());
    assert_eq!(checkpoint::open(&text, &public).unwrap(), checkpoint("kage.example/audit"));
    // Another key under the same name, another name with the same key, another log's words.
    let other = key("kage.example/audit", Kind::Log, 2);
    assert_eq!(
        checkpoint::open(&text, &other.verifier()),
        Err(TrailError::Unsigned(public.name().to_owned()))
    );
    assert!(checkpoint::open(&text, &key("kage.example/other", Kind::Log, 1).verifier()).is_err());
    let foreign = checkpoint("other.example/audit").sign(&log).to_string();
    assert!(matches!(checkpoint::open(&foreign, &public), Err(TrailError::Origin { .. })));
    // A line that names our key and id, and is another's.
    let forged = key("kage.example/audit", Kind::Log, 2).sign(&note.text, 0).to_string();
    let (mine, theirs) = (note.signatures[0].to_string(), forged);
    let (head, tail) = (&mine[..mine.len() - 83], &theirs[theirs.len() - 83..]);
    let mixed = format!("{}\n{head}{tail}\n", note.text);
    assert!(checkpoint::open(&mixed, &public).is_err());
    // Beside a good one, a bad one of the same key is no help either.
    assert!(checkpoint::open(&format!("{text}{head}{tail}\n"), &public).is_err());
    // Strangers' signatures are let be.
    let stranger = key("stranger.example", Kind::Log, 3).sign(&note.text, 0);
    assert!(checkpoint::open(&format!("{text}{stranger}\n"), &public).is_ok());
}

#[test]
fn a_witness_says_when_it_saw() {
    let log = key("kage.example/audit", Kind::Log, 1);
    let (witness, other) = (key("witness.example", Kind::Witness, 4), key("other.example", Kind::Witness, 5));
    let mut note = checkpoint("kage.example/audit").sign(&log);
    note.signatures.push(witness.sign(&note.text, 1_700_000_000));
    note.signatures.push(other.sign(&note.text, 1));
    let note = Note::parse(&note.to_string()).unwrap();
    let known = [witness.verifier()];
    let found = checkpoint::witnessed(&note, &known).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].witness.as_str(), found[0].time), ("witness.example", 1_700_000_000));
    // For another time, or another text, it does not hold.
    let line = note.signatures[1].to_string();
    let (head, rest) =
        line.split_once(' ').map(|(dash, rest)| (dash, rest.split_once(' ').unwrap())).unwrap();
    let mut bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, rest.1).unwrap();
    bytes[11] ^= 1;
    let bytes = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes);
    let moved = Note::parse(&format!("{}\n{head} {} {bytes}\n", note.text, rest.0)).unwrap();
    assert_eq!(
        checkpoint::witnessed(&moved, &known),
        Err(TrailError::Signature("witness.example".to_owned()))
    );
    // A log's signature is no witness's, and the other way round.
    assert!(checkpoint::witnessed(&note, &[log.verifier()]).unwrap().is_empty());
    let text = note.text.clone();
    let as_log = Note { signatures: vec![witness.sign(&text, 1)], text };
    assert!(checkpoint::Checkpoint::open(&as_log, &log.verifier()).is_err());
}

#[test]
fn keys_of_a_wrong_form_are_refused_and_not_repeated() {
    for wrong in [
        "",
        "PeterNeumann",
        "PeterNeumann+c74f20a3",
        "PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "Peter Neumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "x+00000000+",
        "x+00000000+AQ==",
        // The neutral element: it signs everything.
        "x+30b4a9e1+AQEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    ] {
        assert!(VerifierKey::parse(wrong).is_err(), "{wrong}");
    }
    for wrong in [
        &SIGNER[1..],
        &SIGNER[..SIGNER.len() - 4],
        &SIGNER.replace("c74f20a3", "c74f20a4"),
        &SIGNER.replace("AYEK", "AoEK"),
    ] {
        let error = SignerKey::parse(&wrong.to_owned().into()).unwrap_err().to_string();
        assert!(!error.contains("FALVFG"), "{error}");
    }
    let empty = SecretBox::new(Box::new([0; 32]));
    for wrong in ["", "a b", "a+b", "a\n"] {
        assert!(SignerKey::new(wrong, Kind::Log, &empty).is_err(), "{wrong:?}");
    }
}

proptest! {
    #[test]
    fn one_bit_undoes_a_note(at: usize, bit in 0u8..8) {
        let log = key("kage.example/audit", Kind::Log, 1);
        let note = checkpoint("kage.example/audit").sign(&log).to_string();
        let mut bytes = note.into_bytes();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        if let Ok(text) = String::from_utf8(bytes) {
            prop_assert!(checkpoint::open(&text, &log.verifier()).is_err(), "{}", text);
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,40}(\n\\PC{0,20}){0,4}(\n\n— [a-z]{1,4} [A-Za-z0-9=]{4,12}\n)?") {
        if let Ok(note) = Note::parse(&text) {
            prop_assert_eq!(note.to_string(), text);
        }
    }
}
