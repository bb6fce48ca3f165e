//! What the wall costs at the start of a worker: medians of time from spawn to its first answer.
//!
//! `cargo run -p substrate-sandbox --example spawn_cost -- ATTACKER MODEL [ROUNDS]`, where ATTACKER
//! is `substrate-wall-attacker`, built statically. Rounds are interleaved, so that load falls on all alike.

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    linux::main()
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        error::Error,
        io::{BufRead, BufReader, Write},
        os::unix::process::CommandExt,
        path::Path,
        process::{Command, Stdio},
        time::{Duration, Instant},
    };

    use substrate_sandbox::launch::{Wall, WallSpec};

    type Outcome<T> = Result<T, Box<dyn Error>>;

    /// Nobody, whom workers become when this runs as root.
    const NOBODY: u32 = 65534;

    /// Enough for a steady 99th percentile within a second or two.
    const ROUNDS: usize = 300;

    pub fn main() -> Outcome<()> {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let (attacker, model, rounds) = match arguments.as_slice() {
            [attacker, model] => (attacker, model, ROUNDS),
            [attacker, model, rounds] => (attacker, model, rounds.parse()?),
            _ => return Err("usage: spawn_cost ATTACKER MODEL [ROUNDS]".into()),
        };
        let become_uid = is_root()?.then_some(NOBODY);
        let mut spec = WallSpec::new(attacker, model);
        spec.become_uid = become_uid;

        let mut times: [Vec<Duration>; 4] = Default::default();
        for _ in 0..rounds {
            times[0].push(bare(Path::new(attacker), become_uid)?);
            for stage in 0..=2 {
                times[stage + 1].push(walled(&spec, stage)?);
            }
        }
        let names = [
            "bare process",
            "namespaces",
            "+ first seal",
            "+ second seal",
        ];
        for (name, times) in names.iter().zip(&mut times) {
            times.sort();
            let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
            println!(
                "{name:<14} p50 {:.2} ms  p99 {:.2} ms  (n = {rounds})",
                at(50),
                at(99)
            );
        }
        Ok(())
    }

    fn bare(attacker: &Path, become_uid: Option<u32>) -> Outcome<Duration> {
        let start = Instant::now();
        let mut command = Command::new(attacker);
        command.args(["bare", "hello"]).stdout(Stdio::piped());
        if let Some(uid) = become_uid {
            command.uid(uid).gid(uid);
        }
        let mut child = command.spawn()?;
        let mut answer = String::new();
        BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut answer)?;
        let took = start.elapsed();
        child.wait()?;
        Ok(took)
    }

    fn walled(spec: &WallSpec, stage: usize) -> Outcome<Duration> {
        let start = Instant::now();
        let mut worker = Wall::spawn(spec.clone())?;
        let mut pipe = worker.take_pipe().ok_or("no pipe")?;
        writeln!(pipe, "{stage} hello")?;
        let mut answer = String::new();
        BufReader::new(&pipe).read_line(&mut answer)?;
        let took = start.elapsed();
        worker.wait()?;
        match answer.as_str() {
            "hello\n" => Ok(took),
            other => Err(format!("the worker said {other:?}").into()),
        }
    }

    fn is_root() -> Outcome<bool> {
        use std::os::unix::fs::MetadataExt;
        Ok(std::fs::metadata("/proc/self")?.uid() == 0)
    }
}
