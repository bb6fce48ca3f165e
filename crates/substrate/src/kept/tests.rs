//! What clients keep: whole, their own, bounded, and gone when it should be.

use std::io::Read;

use super::*;

const NOW: u64 = 1_700_000_000_000;

fn open(folder: &Path) -> KeptFiles {
    KeptFiles::open(folder).unwrap()
}

fn key(name: &str) -> Client {
    Client::Key(name.into())
}

fn keep(files: &KeptFiles, owner: &Client, bytes: &[u8], expires_ms: Option<u64>) -> KeptFile {
    let mut writer = files.writer(owner, NOW).unwrap();
    for piece in bytes.chunks(3) {
        writer.append(piece).unwrap();
    }
    writer
        .commit("in.jsonl".into(), Purpose::Batch, expires_ms)
        .unwrap()
}

fn names(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn a_file_is_there_after_a_restart_and_a_half_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let files = open(folder.path());
    let kept = keep(&files, &key("ann"), b"hello world", None);
    let mut half = files.writer(&key("ann"), NOW).unwrap();
    half.append(b"half").unwrap();
    // As if the power went: nothing is dropped.
    std::mem::forget(half);
    std::fs::write(
        folder.path().join(FileId::draw().to_string()),
        b"bytes alone",
    )
    .unwrap();
    std::fs::write(
        folder.path().join(format!("{}.json", FileId::draw())),
        b"{}",
    )
    .unwrap();
    let again = open(folder.path());
    assert_eq!(again.list(&key("ann"), NOW), std::slice::from_ref(&kept));
    let (_, mut bytes) = again.read(&key("ann"), kept.id, NOW).unwrap();
    let mut text = String::new();
    bytes.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello world");
    assert_eq!(names(folder.path()), 2);
}

#[test]
fn nobody_sees_anothers_files_but_the_machines_owner() {
    let folder = tempfile::tempdir().unwrap();
    let files = open(folder.path());
    let kept = keep(&files, &key("ann"), b"x", None);
    for other in [key("bob"), Client::Anonymous] {
        assert!(files.list(&other, NOW).is_empty());
        assert!(files.get(&other, kept.id, NOW).is_err());
        assert!(files.read(&other, kept.id, NOW).is_err());
        assert!(files.delete(&other, kept.id, NOW).is_err());
    }
    assert_eq!(files.list(&Client::Owner, NOW).len(), 1);
    files.delete(&key("ann"), kept.id, NOW).unwrap();
    assert_eq!(names(folder.path()), 0);
}

#[test]
fn a_file_expires_unless_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let files = open(folder.path());
    let ends = expiry(NOW, 3_600).unwrap();
    let kept = keep(&files, &key("ann"), b"x", Some(ends));
    assert!(files.get(&key("ann"), kept.id, ends - 1).is_ok());
    let held = files.hold(kept.id);
    assert!(files.get(&key("ann"), kept.id, ends).is_ok());
    assert!(matches!(
        files.delete(&key("ann"), kept.id, NOW),
        Err(KeptError::InUse(_))
    ));
    drop(held);
    assert!(files.get(&key("ann"), kept.id, ends).is_err());
    assert_eq!(names(folder.path()), 0);
    for seconds in [-1, 0, 3_599, 2_592_001] {
        assert!(expiry(NOW, seconds).is_err(), "{seconds}");
    }
}

#[test]
fn a_file_over_the_limit_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let files = open(folder.path());
    let mut writer = files.writer(&key("ann"), NOW).unwrap();
    writer.pretend(FILE_BYTES - 2);
    writer.append(b"ab").unwrap();
    assert!(matches!(writer.append(b"c"), Err(KeptError::TooLarge)));
    drop(writer);
    assert_eq!(names(folder.path()), 0);
    assert!(files.index().writing.is_empty());
}

#[test]
fn one_client_cannot_take_all_the_room() {
    let mut index = Index::default();
    let of = |owner: &Client, bytes: u64| KeptFile {
        id: FileId::draw(),
        owner: owner.clone(),
        filename: String::new(),
        purpose: Purpose::Batch,
        bytes,
        created_ms: NOW,
        expires_ms: None,
    };
    let file = of(&key("ann"), BYTES_OF_ONE - 1);
    index.files.insert(file.id, file);
    assert!(index.room(&key("ann"), 1).is_ok());
    assert!(index.room(&key("ann"), 2).is_err());
    assert!(index.room(&key("bob"), 2).is_ok());
    for _ in 0..FILES_OF_ONE - 1 {
        let file = of(&key("ann"), 0);
        index.files.insert(file.id, file);
    }
    assert!(index.place(&key("ann")).is_err());
    assert!(index.place(&key("bob")).is_ok());
}

#[test]
fn what_this_machine_made_is_taken_once() {
    let folder = tempfile::tempdir().unwrap();
    let own = tempfile::tempdir().unwrap();
    let own = own.path().join("part");
    std::fs::write(&own, b"rows\n").unwrap();
    let files = open(folder.path());
    let file = KeptFile {
        id: FileId::draw(),
        owner: key("ann"),
        filename: "out.jsonl".into(),
        purpose: Purpose::BatchOutput,
        bytes: 0,
        created_ms: NOW,
        expires_ms: None,
    };
    files.adopt(&own, file.clone()).unwrap();
    // A crash before the batch knew of it.
    let files = open(folder.path());
    files.adopt(&own, file.clone()).unwrap();
    assert_eq!(files.get(&key("ann"), file.id, NOW).unwrap().bytes, 5);
}
