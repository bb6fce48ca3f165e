//! What keys promise: private files, the right passphrase, the same key after a restart.

use std::os::unix::fs::PermissionsExt;

use super::*;

fn home() -> (tempfile::TempDir, Home) {
    let folder = tempfile::tempdir().unwrap();
    let home = Home::at(folder.path().join("home"));
    home.prepare().unwrap();
    (folder, home)
}

#[test]
fn a_device_key_is_made_once_and_is_private() {
    let (_folder, home) = home();
    let first = DeviceKey::open_or_create(&home).unwrap();
    let again = DeviceKey::open_or_create(&home).unwrap();
    assert_eq!(first.node(), again.node());
    assert_eq!(
        std::fs::metadata(home.device_key()).unwrap().mode() & 0o777,
        0o600
    );
    let pem = std::fs::read_to_string(home.device_key()).unwrap();
    assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----"));
}

#[test]
fn a_key_others_may_read_is_refused_with_the_cure() {
    let (_folder, home) = home();
    DeviceKey::open_or_create(&home).unwrap();
    std::fs::set_permissions(home.device_key(), std::fs::Permissions::from_mode(0o640)).unwrap();
    let error = DeviceKey::open_or_create(&home).err().unwrap().to_string();
    assert!(
        error.contains("mode 640") && error.contains("chmod 600"),
        "{error}"
    );
}

#[test]
fn a_damaged_device_key_is_never_replaced() {
    let (_folder, home) = home();
    write_atomically(&home.device_key(), 0o600, b"not a key").unwrap();
    assert!(matches!(
        DeviceKey::open_or_create(&home),
        Err(KeyError::Malformed { .. })
    ));
    assert_eq!(std::fs::read(home.device_key()).unwrap(), b"not a key");
}

#[test]
fn a_registry_key_opens_with_its_passphrase_only() {
    let (folder, home) = home();
    let network = NetworkId::from_bytes([3; 32]);
    let right = folder.path().join("pass");
    std::fs::write(&right, "correct horse\nsecond line\n").unwrap();
    let key = RegistryKey::generate();
    assert!(!RegistryKey::exists(&home, &network));
    key.seal(&home, &network, &Passphrase::from_file(&right).unwrap())
        .unwrap();
    assert!(RegistryKey::exists(&home, &network));
    let opened = RegistryKey::open(&home, &network, &Passphrase::new("correct horse".into()))
        .ok()
        .unwrap();
    assert_eq!(opened.node(), key.node());
    let wrong = RegistryKey::open(&home, &network, &Passphrase::new("battery".into()))
        .err()
        .unwrap();
    assert!(matches!(wrong, KeyError::WrongPassphrase { .. }));
    let sealed = std::fs::read(home.registry_key(&network)).unwrap();
    assert!(sealed.starts_with(b"age-encryption.org/v1"));
    let other = NetworkId::from_bytes([4; 32]);
    assert!(matches!(
        RegistryKey::open(&home, &other, &Passphrase::new("x".into())),
        Err(KeyError::NoRegistryKey { .. })
    ));
}
