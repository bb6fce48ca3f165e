//! What the blob store promises: whole or absent, the right bytes, the user's file untouched.

use std::io::Write;

use super::*;

struct Fixture {
    folder: tempfile::TempDir,
    blobs: Blobs,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(&folder.path().join("blobs")).unwrap();
        Self { folder, blobs }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Everything in the blob folder but the quarantine.
    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.blobs.folder()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|name| name != "quarantine");
        names.sort();
        names
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o777
}

#[test]
fn a_file_is_imported_once_and_its_original_is_untouched() {
    let fixture = Fixture::new();
    let bytes = vec![7; 3 * CHUNK + 1];
    let file = fixture.file("a.gguf", &bytes);
    let mut seen = Vec::new();
    let first = fixture
        .blobs
        .import(&file, None, &mut |done, total| seen.push((done, total)))
        .unwrap();
    assert_eq!(first.digest, ContentHash::of(&bytes));
    assert_eq!(seen.last(), Some(&(bytes.len() as u64, bytes.len() as u64)));
    assert_eq!(mode(&fixture.blobs.path(&first.digest)), 0o444);
    assert_eq!(mode(&file), 0o644);
    let second = fixture
        .blobs
        .import(&file, Some(first.digest), &mut |_, _| {})
        .unwrap();
    assert_eq!(second.how, How::Present);
    assert_eq!(
        fixture.blobs.list().unwrap(),
        [(first.digest, bytes.len() as u64)]
    );
    assert_eq!(fixture.names().len(), 1, "no left-over");
}

#[test]
fn a_read_only_file_costs_no_space_or_is_copied() {
    let fixture = Fixture::new();
    let file = fixture.file("a.gguf", b"weights");
    std::fs::set_permissions(&file, Permissions::from_mode(0o444)).unwrap();
    let imported = fixture.blobs.import(&file, None, &mut |_, _| {}).unwrap();
    assert!(
        matches!(imported.how, How::Linked | How::Reflinked),
        "{imported:?}"
    );
    assert_eq!(
        fixture
            .blobs
            .import(&file, None, &mut |_, _| {})
            .unwrap()
            .how,
        How::Present
    );
    assert!(fixture.blobs.remove(&imported.digest).unwrap());
    assert_eq!(std::fs::read(&file).unwrap(), b"weights");
    assert_eq!(fixture.names().len(), 0);
}

#[test]
fn other_bytes_than_promised_are_refused_and_leave_nothing() {
    let fixture = Fixture::new();
    let file = fixture.file("a.gguf", b"other");
    let promised = ContentHash::of(b"this");
    let error = fixture
        .blobs
        .import(&file, Some(promised), &mut |_, _| {})
        .unwrap_err();
    assert!(matches!(error, BlobError::Digest { .. }), "{error}");
    let mut writer = fixture.blobs.writer(Some(promised), None).unwrap();
    writer.write_all(b"thi").unwrap();
    assert!(matches!(writer.commit(), Err(BlobError::Digest { .. })));
    assert_eq!(fixture.names().len(), 0);
    assert_eq!(std::fs::read(&file).unwrap(), b"other");
}

#[test]
fn a_blob_that_lies_is_found_and_quarantined() {
    let fixture = Fixture::new();
    let mut writer = fixture.blobs.writer(None, Some(5)).unwrap();
    writer.write_all(b"honest").unwrap();
    let (digest, size) = writer.commit().unwrap();
    assert_eq!(size, 6);
    fixture.blobs.verify(&digest).unwrap();
    let path = fixture.blobs.path(&digest);
    std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    std::fs::write(&path, b"hones").unwrap();
    assert!(matches!(
        fixture.blobs.verify(&digest),
        Err(BlobError::Digest { .. })
    ));
    assert!(!fixture.blobs.has(&digest));
    assert!(fixture.blobs.quarantine_place(&digest).is_file());
    assert!(matches!(
        fixture.blobs.verify(&digest),
        Err(BlobError::Absent(_))
    ));
}

#[test]
fn what_does_not_fit_is_refused_before_a_byte_is_written() {
    let fixture = Fixture::new();
    let error = fixture.blobs.check_room(1 << 60).unwrap_err();
    assert!(error.to_string().contains("not enough space"), "{error}");
    assert!(matches!(
        fixture.blobs.writer(None, Some(u64::MAX)),
        Err(BlobError::NoSpace { .. })
    ));
    assert_eq!(fixture.names().len(), 0);
}

#[test]
fn left_overs_of_a_crash_are_removed_at_the_next_start() {
    let fixture = Fixture::new();
    let (own, _file) = fixture.blobs.temporary().unwrap();
    let partial = fixture.blobs.folder().join(".partial-x");
    std::fs::write(&partial, b"").unwrap();
    Blobs::open(fixture.blobs.folder()).unwrap();
    assert!(!own.exists());
    assert!(partial.exists(), "an unfinished download is kept");
}

#[test]
fn folders_and_absent_files_are_refused_by_name() {
    let fixture = Fixture::new();
    let folder = fixture
        .blobs
        .import(fixture.folder.path(), None, &mut |_, _| {})
        .unwrap_err();
    assert!(matches!(folder, BlobError::NotAFile { .. }), "{folder}");
    let absent = fixture
        .blobs
        .import(Path::new("/nowhere/x"), None, &mut |_, _| {})
        .unwrap_err();
    assert!(absent.to_string().contains("/nowhere/x"), "{absent}");
}

#[test]
fn a_blob_is_read_once_and_again_when_the_file_has_changed() {
    let fixture = Fixture::new();
    let file = fixture.file("a.gguf", b"weights");
    let digest = fixture
        .blobs
        .import(&file, None, &mut |_, _| {})
        .unwrap()
        .digest;
    fixture.blobs.check(&digest).unwrap();
    assert_eq!(fixture.blobs.sound().len(), 1);
    fixture.blobs.check(&digest).unwrap();

    // One byte, of the same length, at the same second, with the time of the last write set back.
    let path = fixture.blobs.path(&digest);
    let before = std::fs::metadata(&path).unwrap().modified().unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let mut own = OpenOptions::new().write(true).open(&path).unwrap();
    own.write_all(b"W").unwrap();
    own.set_modified(before).unwrap();
    let refused = fixture.blobs.check(&digest).unwrap_err();
    assert!(
        matches!(refused, BlobError::Digest { promised, .. } if promised == digest),
        "{refused}"
    );
    assert!(!fixture.blobs.has(&digest), "it is out of the way");
    assert!(fixture.blobs.quarantine_place(&digest).is_file());
    assert!(matches!(
        fixture.blobs.check(&digest),
        Err(BlobError::Absent(absent)) if absent == digest
    ));
    assert_eq!(
        std::fs::read(&file).unwrap().len(),
        7,
        "the user's file is untouched"
    );
}

#[test]
fn a_blob_that_came_back_is_read_again() {
    let fixture = Fixture::new();
    let file = fixture.file("a.gguf", b"weights");
    let imported = fixture.blobs.import(&file, None, &mut |_, _| {}).unwrap();
    fixture.blobs.check(&imported.digest).unwrap();
    fixture.blobs.remove(&imported.digest).unwrap();
    assert!(fixture.blobs.sound().is_empty());
    fixture.blobs.import(&file, None, &mut |_, _| {}).unwrap();
    fixture.blobs.check(&imported.digest).unwrap();
}
