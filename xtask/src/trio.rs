//! Three nodes of one network, set up with the commands a person would type.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::node::Node;
use crate::sh;
use crate::stream::Answer;

/// The model's name in demo, benchmarks and tests.
pub const MODEL: &str = "smollm2:135m";

/// The demo model with a projector, in tests.
pub const SEES: &str = "smollm2:135m-sees";

/// The name of the model for vectors.
pub const VECTORS: &str = "all-minilm:33m";

/// How long a change at one node may take to be seen at another: two gossip intervals are promised (2 min); on
/// loopback, within one circle, it is point to point.
const SEEN: Duration = Duration::from_secs(30);

/// A founded the network; B and C joined its circle by code.
pub struct Trio {
    /// Founder.
    pub a: Node,
    /// First guest.
    pub b: Node,
    /// Second guest.
    pub c: Node,
}

/// Which nodes hold the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holders {
    /// All three.
    All,
    /// The guests only: the founder has no model.
    Guests,
}

impl Trio {
    /// Starts three nodes under `folder` and waits until the founder sees both guests' model.
    ///
    /// # Errors
    /// Any step's, with the end of the node's log.
    pub fn start(bin: &Path, folder: &Path, model: &Path, holders: Holders) -> Result<Self> {
        Self::start_with(bin, folder, model, holders, |node| node)
    }

    /// As [`Trio::start`], each node changed by `configure` before its start.
    ///
    /// # Errors
    /// As [`Trio::start`].
    pub fn start_with(
        bin: &Path,
        folder: &Path,
        model: &Path,
        holders: Holders,
        configure: impl Fn(Node) -> Node,
    ) -> Result<Self> {
        let make = |name| Node::create(bin, folder, name).map(&configure);
        let mut a = make("a")?;
        found(&a, model, holders)?;
        a.start()?;
        let (mut b, mut c) = (make("b")?, make("c")?);
        for guest in [&mut b, &mut c] {
            guest.start()?;
            join(&a, guest)?;
            import(guest, model, &[])?;
            guest.cli(&["node", "lend", "always"])?;
        }
        let trio = Self { a, b, c };
        trio.wait_until_seen()?;
        Ok(trio)
    }

    /// Waits until both guests can answer for the founder.
    ///
    /// # Errors
    /// They cannot within the deadline.
    pub fn wait_until_seen(&self) -> Result<()> {
        self.a
            .wait_for("both guests offering the model", SEEN, |a| {
                let peers = a.json(&["peers"])?;
                let peers = peers["peers"].as_array().context("no list of peers")?;
                let offering = peers.iter().filter(|peer| {
                    peer["connected"] == true
                        && peer["models"]
                            .as_array()
                            .is_some_and(|models| !models.is_empty())
                });
                Ok(offering.count() >= 2)
            })
    }

    /// Imports the model for vectors at both guests, and waits until the founder sees it there.
    ///
    /// # Errors
    /// A command's, or it is not seen in time.
    pub fn share_vectors(&self, file: &Path) -> Result<()> {
        for guest in [&self.b, &self.c] {
            import_as(guest, file, VECTORS, &[])?;
        }
        self.wait_until_offered(VECTORS)
    }

    /// As [`Trio::share_vectors`], the model with a projector.
    ///
    /// # Errors
    /// As [`Trio::share_vectors`].
    pub fn share_seeing(&self, model: &Path, projector: &Path) -> Result<()> {
        for guest in [&self.b, &self.c] {
            import_seeing(guest, model, projector)?;
        }
        self.wait_until_offered(SEES)
    }

    fn wait_until_offered(&self, name: &str) -> Result<()> {
        self.a.wait_for("both guests offering a model", SEEN, |a| {
            let peers = a.json(&["peers"])?;
            let peers = peers["peers"].as_array().context("no list of peers")?;
            let offers = |peer: &&serde_json::Value| {
                let models = peer["models"].as_array();
                models.is_some_and(|models| models.iter().any(|model| model == name))
            };
            Ok(peers.iter().filter(offers).count() >= 2)
        })
    }

    /// The guest with this key.
    ///
    /// # Errors
    /// It is neither.
    pub fn guest(&self, key: &str) -> Result<&Node> {
        for guest in [&self.b, &self.c] {
            if id(guest)? == key {
                return Ok(guest);
            }
        }
        bail!("{key} is no guest")
    }

    /// The guest with this key, to be killed or started.
    ///
    /// # Errors
    /// It is neither.
    pub fn guest_mut(&mut self, key: &str) -> Result<&mut Node> {
        let is_b = id(&self.b)? == key;
        self.guest(key)?;
        Ok(if is_b { &mut self.b } else { &mut self.c })
    }
}

/// A node's key in hex.
///
/// # Errors
/// The command's.
pub fn id(node: &Node) -> Result<String> {
    let told = node.json(&["node", "id"])?;
    Ok(told["node"].as_str().context("no key")?.to_owned())
}

/// Founds a network at a node that does not run, and imports the model there, signed for everyone.
///
/// # Errors
/// A command's.
pub fn found(a: &Node, model: &Path, holders: Holders) -> Result<()> {
    a.write_file("passphrase", "correct horse battery staple\n")?;
    let passphrase = a.home.join("passphrase");
    let passphrase = passphrase.to_str().context("a path in UTF-8")?;
    a.cli(&["network", "create", "demo", "--passphrase-file", passphrase])?;
    if holders == Holders::All {
        import(a, model, &["--passphrase-file", passphrase])?;
    }
    Ok(())
}

/// Lets `guest` into the circle of `host` by a fresh code.
///
/// # Errors
/// Either side's command.
pub fn join(host: &Node, guest: &Node) -> Result<()> {
    let invite = host.json(&["circle", "invite"])?;
    let code = invite["code"].as_str().context("no code")?;
    guest.cli(&["circle", "join", code])?;
    Ok(())
}

/// The key of the node that answers the one running job of `a`.
///
/// # Errors
/// None runs.
pub fn answering(a: &Node) -> Result<String> {
    let jobs = a.json(&["jobs"])?;
    let jobs = jobs["jobs"].as_array().context("no list of jobs")?;
    let running = jobs
        .iter()
        .find(|job| job["state"] == "running")
        .context("no running job")?;
    Ok(running["node"].as_str().context("no node")?.to_owned())
}

/// Sends a signal by its name.
///
/// # Errors
/// There is no such process.
pub fn signal(pid: u32, name: &str) -> Result<()> {
    sh::run(Command::new("kill").args([&format!("-{name}"), &pid.to_string()]))
}

/// Sends a signal to the node's one worker.
///
/// # Errors
/// It has none.
pub fn signal_worker(node: &Node, name: &str) -> Result<()> {
    let workers = node.json(&["ps"])?;
    let pid = workers["models"][0]["pid"].as_u64().context("no worker")?;
    signal(u32::try_from(pid)?, name)
}

/// The longest silence while the node that answers is lost, up to [`SHORT`] tokens of prompt and answer.
pub const LONGEST_GAP: Duration = Duration::from_secs(3);
/// Prompt and received tokens up to which the gap is a plain figure.
const SHORT: u64 = 128;
/// With more of them: noticing the loss and asking another node …
const NOTICE: Duration = Duration::from_secs(2);
/// … which reads all of it again, with some room for the other node's worse moment.
const PREFILL_ROOM: f64 = 1.2;

/// The longest silence allowed when an answer breaks after `received` tokens, by an unbroken answer of the same run.
///
/// # Errors
/// The unbroken answer does not tell its time of prefill.
pub fn gap_limit(unbroken: &Answer, received: usize) -> Result<Duration> {
    let prompt = unbroken.used("prompt_tokens")?;
    let all = prompt + received as u64;
    if all <= SHORT {
        return Ok(LONGEST_GAP);
    }
    #[expect(clippy::cast_precision_loss, reason = "a few thousand tokens")]
    let longer = all as f64 / prompt.max(1) as f64;
    Ok(NOTICE + unbroken.prefill()?.mul_f64(longer * PREFILL_ROOM))
}

/// What the gate's tests allow beyond [`gap_limit`]: their machine has other things to do, and they look for a gap of another
/// kind, such as a death that is not noticed. The figure itself is `cargo xtask prove failover`'s.
const GATE_ROOM: f64 = 1.5;

/// As [`gap_limit`], for the tests of the gate.
///
/// # Errors
/// As there.
pub fn gap_limit_of_the_gate(unbroken: &Answer, received: usize) -> Result<Duration> {
    Ok(gap_limit(unbroken, received)?.mul_f64(GATE_ROOM))
}

/// A prompt of so many lines, each of some 17 tokens; `number` makes it another one.
pub fn long_prompt(number: usize, lines: usize) -> String {
    let line = |line: usize| {
        format!(
            "On day {line} the harbour of town {number} counted {} boats and {} crates of apples.\n",
            line * 7 % 31,
            line * 13 % 57
        )
    };
    let notes: String = (1..=lines).map(line).collect();
    format!("Here are some notes.\n{notes}Tell a story about this town in a few sentences.")
}

/// Imports the demo model.
///
/// # Errors
/// The command's.
pub fn import(node: &Node, model: &Path, more: &[&str]) -> Result<()> {
    import_as(node, model, MODEL, more)
}

/// Imports the demo model with a projector, as [`SEES`].
///
/// # Errors
/// The command's.
pub fn import_seeing(node: &Node, model: &Path, projector: &Path) -> Result<()> {
    let projector = projector.to_str().context("a path in UTF-8")?;
    import_as(node, model, SEES, &["--projector", projector])
}

/// Imports a model under a name.
///
/// # Errors
/// The command's.
pub fn import_as(node: &Node, model: &Path, name: &str, more: &[&str]) -> Result<()> {
    let model = model.to_str().context("a path in UTF-8")?;
    let mut args = vec!["import", model, "--as", name];
    args.extend_from_slice(more);
    node.cli(&args).map(drop)
}

/// Where tests find the staged programs.
///
/// # Panics
/// `SUBSTRATE_TEST_BIN` is not set: a test that silently skipped would prove nothing.
pub fn test_bin() -> std::path::PathBuf {
    std::env::var_os("SUBSTRATE_TEST_BIN")
        .expect("SUBSTRATE_TEST_BIN names the folder that `cargo xtask stage` prints")
        .into()
}

/// Where tests find the model for vectors.
///
/// # Panics
/// `SUBSTRATE_TEST_VECTORS` is not set.
pub fn test_vectors() -> std::path::PathBuf {
    std::env::var_os("SUBSTRATE_TEST_VECTORS")
        .expect("SUBSTRATE_TEST_VECTORS names the second file that `cargo xtask model` prints")
        .into()
}

/// Where tests find the projector of the demo model.
///
/// # Panics
/// As [`test_model`]: it lies beside the model.
pub fn test_projector() -> std::path::PathBuf {
    crate::model::projector_beside(&test_model())
}

/// Where tests find the adapter of the demo model.
///
/// # Panics
/// As [`test_projector`].
pub fn test_adapter() -> std::path::PathBuf {
    crate::model::adapter_beside(&test_model())
}

/// Where tests find the demo model.
///
/// # Panics
/// `SUBSTRATE_TEST_MODEL` is not set.
pub fn test_model() -> std::path::PathBuf {
    std::env::var_os("SUBSTRATE_TEST_MODEL")
        .expect("SUBSTRATE_TEST_MODEL names the file that `cargo xtask model` prints")
        .into()
}
