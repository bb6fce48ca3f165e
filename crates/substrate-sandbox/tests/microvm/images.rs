//! Images that are not what they say are refused before anything boots.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use substrate_sandbox::microvm::{GuestImage, ImageError, MANIFEST, Trust, name_of};

use crate::stand::{Folder, image_folder};

/// A copy of the image, to be spoilt.
fn copy(name: &str) -> Option<(Folder, PathBuf)> {
    let from = image_folder()?;
    let folder = Folder::new(name);
    let to = folder.0.join("image");
    fs::create_dir(&to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    Some((folder, to))
}

fn flip(path: &Path, at: u64) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[test]
fn a_flipped_byte_is_refused_in_every_part() {
    let Some((_folder, image)) = copy("flip") else {
        return;
    };
    let name = name_of(&image).unwrap();
    let opened = GuestImage::open(&image, Trust::Name(name)).unwrap();
    assert!(opened.is_untouched());
    for part in ["vmlinux", "initrd.cpio", "root.erofs"] {
        let path = image.join(part);
        for at in [0, fs::metadata(&path).unwrap().len() / 2] {
            flip(&path, at);
            let error = GuestImage::open(&image, Trust::Name(name)).unwrap_err();
            assert!(
                matches!(error, ImageError::Digest { .. }),
                "{part}: {error}"
            );
            assert!(error.to_string().contains(part), "{error}");
            flip(&path, at);
        }
        assert!(!opened.is_untouched(), "{part}");
    }
    GuestImage::open(&image, Trust::Name(name)).unwrap();
}

#[test]
fn another_manifest_is_another_image() {
    let Some((_folder, image)) = copy("name") else {
        return;
    };
    let name = name_of(&image).unwrap();
    let path = image.join(MANIFEST);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}\n")).unwrap();
    let error = GuestImage::open(&image, Trust::Name(name)).unwrap_err();
    assert!(matches!(error, ImageError::Name { .. }), "{error}");

    fs::write(&path, text.replace("root.erofs", "../root.erofs")).unwrap();
    let error = name_of(&image).unwrap_err();
    assert!(matches!(error, ImageError::Layout { .. }), "{error}");
    fs::write(&path, text.replace("\"version\": 1", "\"version\": 2")).unwrap();
    assert!(matches!(
        name_of(&image).unwrap_err(),
        ImageError::Layout { .. }
    ));
    fs::write(&path, "{}").unwrap();
    assert!(matches!(
        name_of(&image).unwrap_err(),
        ImageError::Manifest { .. }
    ));
}

#[test]
fn a_signature_is_of_one_image_by_one_key() {
    use ed25519_dalek::{Signer, SigningKey};
    use substrate_sandbox::microvm::{SIGNATURE, to_sign};
    let Some((_folder, image)) = copy("signature") else {
        return;
    };
    let key = SigningKey::from_bytes(&[7; 32]);
    let trust = Trust::Key(key.verifying_key().to_bytes());
    let error = GuestImage::open(&image, trust).unwrap_err();
    assert!(matches!(error, ImageError::Read { .. }), "{error}");

    let signature = key.sign(&to_sign(&name_of(&image).unwrap()));
    fs::write(image.join(SIGNATURE), signature.to_bytes()).unwrap();
    GuestImage::open(&image, trust).unwrap();
    let other = SigningKey::from_bytes(&[8; 32]).verifying_key().to_bytes();
    let error = GuestImage::open(&image, Trust::Key(other)).unwrap_err();
    assert!(matches!(error, ImageError::Signature { .. }), "{error}");
    flip(&image.join(SIGNATURE), 40);
    let error = GuestImage::open(&image, trust).unwrap_err();
    assert!(matches!(error, ImageError::Signature { .. }), "{error}");
}
