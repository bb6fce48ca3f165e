//! Attempts to get out, one child each, at both stages, and outside as a control.

use substrate_sandbox::launch::ExitKind;

use crate::ground::{run, run_outside};

#[path = "../../attacker/attacks.rs"]
mod attacks;

use attacks::{ATTACKS, Outside};

/// Refused by an error number instead of death, and why that is enough.
const REFUSED_ALIVE: [(&str, u8, &str); 1] = [
    // Its flags cannot be seen by a filter; ENOSYS makes the C library use clone, whose can.
    ("clone3", 1, "Function not implemented"),
];

/// What stage one alone lets pass to be decided by the file system, because the model is opened by
/// path then: the path is not there, or Landlock says no.
const DECIDED_BY_FILES: [&str; 2] = ["open a file of the host", "open its own status"];

#[test]
fn outside_the_wall_the_attacks_work() {
    for attack in ATTACKS
        .iter()
        .filter(|attack| attack.outside == Outside::Works)
    {
        let output = run_outside(attack.name);
        let said = String::from_utf8_lossy(&output.stdout);
        // A program that was executed says nothing and succeeds.
        let worked = said == "allowed\n" || (said.is_empty() && output.status.success());
        assert!(worked, "{}: {said} {:?}", attack.name, output.status);
    }
}

#[test]
fn no_attack_works_before_the_model_is_loaded() {
    attack_at(1);
}

#[test]
fn no_attack_works_after_the_model_is_loaded() {
    attack_at(2);
}

#[test]
fn a_loaded_worker_cannot_open_even_its_model() {
    assert_eq!(
        run(1, "read the model"),
        ("GGUF".to_owned(), ExitKind::Exited(0))
    );
    assert!(run(2, "read the model").1.is_violation());
}

fn attack_at(stage: u8) {
    for attack in ATTACKS {
        let (answer, exit) = run(stage, attack.name);
        let name = attack.name;
        let alive = answer.strip_prefix("denied ").is_some_and(|why| {
            let errno = REFUSED_ALIVE.iter().any(|(who, from, expected)| {
                *who == name && *from <= stage && why.starts_with(expected)
            });
            errno || (stage == 1 && DECIDED_BY_FILES.contains(&name))
        });
        let killed = answer.is_empty() && exit.is_violation();
        assert!(
            killed || alive,
            "stage {stage}, {name}: {answer:?} {exit:?}"
        );
    }
}
