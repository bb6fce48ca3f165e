//! The suite, inside a machine.

use substrate_sandbox::suite::{Attempt, InMachine, Suite};

use crate::stand::{Folder, IMAGE, MODEL, booted, image_folder};

/// Nobody.
const NOBODY: u32 = 65534;

/// What must count, as in the process wall.
const LEAST: usize = 40;

#[test]
fn nothing_gets_out_of_a_machine() {
    let (Some(image), Some(folder)) = (&*IMAGE, image_folder()) else {
        return;
    };
    let ground = Folder::new("ground");
    let disk = Folder::new("disk");
    let is_root =
        std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap()) == 0;
    let suite = Suite {
        attacker: folder.with_file_name("substrate-wall-attacker"),
        ground: ground.0.clone(),
        become_uid: is_root.then_some(NOBODY),
    };
    let machine = booted(image, &disk.spec(MODEL));
    let mut place = InMachine::new(machine, MODEL.len() as u64);
    let attacks = suite.attacks().unwrap();
    let breaches = suite.breaches().unwrap();
    assert!(breaches.len() >= 10);
    let attempts: Vec<Attempt> = attacks
        .into_iter()
        .chain(breaches)
        .map(|attack| suite.attempt(&mut place, attack).unwrap())
        .collect();
    let escaped: Vec<&Attempt> = attempts.iter().filter(|attempt| !attempt.denied).collect();
    assert!(escaped.is_empty(), "{escaped:#?}");
    let counted = attempts.iter().filter(|attempt| attempt.counts()).count();
    assert!(counted >= LEAST, "{counted} of {} count", attempts.len());
}
