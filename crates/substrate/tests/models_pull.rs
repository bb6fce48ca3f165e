//! Pulling from a hub on loopback: real TCP, real ranges, and everything that goes wrong with them.

mod hub;

use std::sync::Arc;
use std::time::Duration;

use hub::{Hub, Trouble, facts};
use substrate::blobs::Blobs;
use substrate::home::Home;
use substrate::keys::{DeviceKey, genesis_of_one};
use substrate::models::catalogue::Catalogue;
use substrate::models::import::{ImportError, Importer, Inspect, InspectError, ModelFacts, Signer};
use substrate::models::pull::{Progress, Pull, PullError, PullSettings, Puller, Source};
use substrate::store::Store;
use substrate_record::ContentHash;

/// Bytes of the test's file: several parts, the last one shorter.
const SIZE: usize = 5 * (1 << 20) + 12_345;

/// Stands for the worker: what is inside is no matter here, only that it was asked.
struct Header;

impl Inspect for Header {
    fn inspect(&self, model: &std::path::Path) -> Result<ModelFacts, InspectError> {
        match std::fs::read(model).unwrap().starts_with(b"GGUF") {
            true => Ok(facts()),
            false => Err(InspectError::BadModel("no GGUF".into())),
        }
    }
}

struct Machine {
    _folder: tempfile::TempDir,
    blobs: Blobs,
    catalogue: Catalogue,
    puller: Puller,
    signer: Signer,
}

fn machine(hub: &Hub) -> Machine {
    let folder = tempfile::tempdir().unwrap();
    let home = Home::at(folder.path().join("home"));
    home.prepare().unwrap();
    let device = Arc::new(DeviceKey::open_or_create(&home).unwrap());
    let store = Store::open(&home.store()).unwrap();
    let genesis = genesis_of_one(&device, "alone");
    store.add_network(&genesis).unwrap();
    let blobs = Blobs::open(&home.blobs()).unwrap();
    let catalogue = Catalogue::new(store, genesis.network());
    let importer = Importer::new(blobs.clone(), catalogue.clone(), Arc::new(Header));
    let settings = PullSettings {
        endpoint: hub.endpoint.clone(),
        connections: 3,
        part: 1 << 20,
        retries: 3,
        backoff: Duration::from_millis(5),
        stall: Duration::from_millis(400),
    };
    Machine {
        _folder: folder,
        blobs,
        catalogue,
        puller: Puller::new(importer, Arc::new(|| 42), settings),
        signer: Signer::Device(device),
    }
}

impl Machine {
    fn pull(&self, source: &str) -> Pull {
        let source = Source::parse(source).unwrap();
        let name = source.default_name();
        self.puller.pull(source, name, self.signer.clone())
    }

    async fn error(&self, source: &str) -> String {
        self.pull(source).finish().await.unwrap_err().to_string()
    }

    /// Files of unfinished downloads.
    fn left_overs(&self) -> usize {
        let entries = std::fs::read_dir(self.blobs.folder()).unwrap();
        entries
            .filter(|entry| {
                entry
                    .as_ref()
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .starts_with('.')
            })
            .count()
    }
}

async fn lines(mut pull: Pull) -> (Vec<Progress>, Pull) {
    let mut lines = Vec::new();
    while let Some(line) = pull.next().await {
        lines.push(line);
    }
    (lines, pull)
}

fn weights() -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend((4..SIZE as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8));
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_brings_a_model_in_ollamas_lines() {
    let hub = Hub::serve(weights(), Trouble::default()).await;
    let machine = machine(&hub);
    let (lines, pull) = lines(machine.pull("hf:user/repo:Q4_1")).await;
    let held = pull.finish().await.unwrap();
    let digest = ContentHash::of(&weights());
    assert_eq!(held.weights(), digest);
    assert_eq!(held.name.to_string(), "hf.co/user/repo:Q4_1");
    assert!(held.entry.body().sources[0].starts_with("hf:user/repo@"));
    assert_eq!(
        std::fs::read(machine.blobs.path(&digest)).unwrap(),
        weights()
    );
    assert_eq!(
        machine
            .catalogue
            .find("hf.co/user/repo:q4_1")
            .unwrap()
            .entry
            .id(),
        held.entry.id()
    );
    let pulling = format!("pulling {}", &digest.to_string()[..12]);
    let mut steps: Vec<_> = lines.iter().map(|line| line.status.as_str()).collect();
    steps.dedup();
    assert_eq!(
        steps,
        [
            "pulling manifest",
            &pulling,
            "verifying sha256 digest",
            "writing manifest",
            "success"
        ]
    );
    let last = lines.iter().rfind(|line| line.status == pulling).unwrap();
    assert_eq!(
        (last.total, last.completed),
        (Some(SIZE as u64), Some(SIZE as u64))
    );
    assert_eq!(
        last.digest.as_deref(),
        Some(format!("sha256:{digest}").as_str())
    );
    assert_eq!(machine.left_overs(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_connections_go_on_where_they_broke_off() {
    let trouble = Trouble {
        cut_after: Some(300_000),
        cuts: 12.into(),
        ..Trouble::default()
    };
    let hub = Hub::serve(weights(), trouble).await;
    let machine = machine(&hub);
    let held = machine.pull("hf:user/repo:Q4_1").finish().await.unwrap();
    assert_eq!(held.weights(), ContentHash::of(&weights()));
    let sent = hub.sent();
    assert!(
        sent < SIZE as u64 * 5 / 4,
        "{sent} bytes were sent for {SIZE}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_goes_silent_is_left_and_asked_again() {
    let trouble = Trouble {
        silent_after: Some(200_000),
        silences: 2.into(),
        ..Trouble::default()
    };
    let hub = Hub::serve(weights(), trouble).await;
    let machine = machine(&hub);
    let held = machine.pull("hf:user/repo:Q4_1").finish().await.unwrap();
    assert_eq!(held.weights(), ContentHash::of(&weights()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_server_is_waited_for() {
    let hub = Hub::serve(
        weights(),
        Trouble {
            busy: 3.into(),
            ..Trouble::default()
        },
    )
    .await;
    machine(&hub)
        .pull("hf:user/repo:Q4_1")
        .finish()
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_ranges_serves_too() {
    let trouble = Trouble {
        no_ranges: true,
        cut_after: Some(3_000_000),
        cuts: 1.into(),
        ..Trouble::default()
    };
    let hub = Hub::serve(weights(), trouble).await;
    let held = machine(&hub)
        .pull("hf:user/repo:Q4_1")
        .finish()
        .await
        .unwrap();
    assert_eq!(held.weights(), ContentHash::of(&weights()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_bytes_than_promised_are_thrown_away() {
    let hub = Hub::serve(
        weights(),
        Trouble {
            wrong_byte: true,
            ..Trouble::default()
        },
    )
    .await;
    let machine = machine(&hub);
    let error = machine.error("hf:user/repo:Q4_1").await;
    assert!(error.contains("the hub promised"), "{error}");
    assert!(machine.blobs.list().unwrap().is_empty());
    assert_eq!(machine.left_overs(), 0);
    assert!(machine.catalogue.list().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_the_inspection_refuses_is_quarantined() {
    let mut bytes = weights();
    bytes[0] = b'X';
    let hub = Hub::serve(bytes, Trouble::default()).await;
    let machine = machine(&hub);
    let Err(PullError::Shared(error)) = machine.pull("hf:user/repo:Q4_1").finish().await else {
        panic!("no error")
    };
    assert!(
        matches!(
            &*error,
            PullError::Import(ImportError::Refused {
                quarantined: Some(_),
                ..
            })
        ),
        "{error}"
    );
    assert!(machine.blobs.list().unwrap().is_empty());
    assert!(machine.catalogue.list().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_is_told_by_name() {
    let hub = Hub::serve(weights(), Trouble::default()).await;
    let machine = machine(&hub);
    let absent = machine.error("hf:user/nothing").await;
    assert!(absent.contains("user/nothing does not exist"), "{absent}");
    let gated = machine.error("hf:user/gated").await;
    assert!(gated.contains("private or gated"), "{gated}");
    let quant = machine.error("hf:user/repo:Q9_9").await;
    assert!(
        quant.contains("no GGUF file for 'Q9_9'") && quant.contains("model-Q4_1.gguf"),
        "{quant}"
    );
    drop(hub);
    let unreachable = machine.error("hf:user/repo:Q4_1").await;
    assert!(unreachable.contains("cannot be reached"), "{unreachable}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_never_gets_further_is_given_up() {
    let trouble = Trouble {
        cut_after: Some(0),
        cuts: u32::MAX.into(),
        ..Trouble::default()
    };
    let hub = Hub::serve(weights(), trouble).await;
    let error = machine(&hub).error("hf:user/repo:Q4_1").await;
    assert!(error.contains("broke off at byte"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_pulls_of_one_model_are_one_download() {
    let hub = Hub::serve(weights(), Trouble::default()).await;
    let machine = machine(&hub);
    let (first, second) = (
        machine.pull("hf:user/repo:Q4_1"),
        machine.pull("hf.co/user/repo:Q4_1"),
    );
    let ((first_lines, first), (second_lines, second)) = tokio::join!(lines(first), lines(second));
    assert_eq!(first_lines.last(), second_lines.last());
    assert_eq!(
        first.finish().await.unwrap().entry.id(),
        second.finish().await.unwrap().entry.id()
    );
    assert!(
        hub.sent() < SIZE as u64 + 100,
        "{} bytes were sent for {SIZE}",
        hub.sent()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_pull_goes_on_from_there() {
    // The hub holds its breath for good after three megabytes, so that the pull is caught in the middle.
    let trouble = Trouble {
        hold_after: Some(3_000_000),
        ..Trouble::default()
    };
    let hub = Hub::serve(weights(), trouble).await;
    let machine = machine(&hub);
    let mut pull = machine.pull("hf:user/repo:Q4_1");
    while let Some(line) = pull.next().await {
        if line
            .completed
            .is_some_and(|completed| completed >= 1_500_000)
        {
            break;
        }
    }
    drop(pull);
    while machine.left_overs() < 2 {
        // The note is written when the last task lets go.
        tokio::task::yield_now().await;
    }
    hub.lift();
    let mut pull = machine.pull("hf:user/repo:Q4_1");
    let first_count = loop {
        let line = pull.next().await.expect("a line with a count");
        if let Some(completed) = line.completed {
            break completed;
        }
    };
    assert!(first_count >= 1_000_000, "begins at {first_count}");
    let held = pull.finish().await.unwrap();
    assert_eq!(held.weights(), ContentHash::of(&weights()));
    assert!(
        hub.sent() <= SIZE as u64 - first_count + 1,
        "only what was missing is fetched"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn left_overs_that_rotted_cost_a_second_download_not_a_wrong_model() {
    let hub = Hub::serve(weights(), Trouble::default()).await;
    let machine = machine(&hub);
    let digest = ContentHash::of(&weights());
    let data = machine.blobs.folder().join(format!(".partial-{digest}"));
    std::fs::write(&data, vec![0; SIZE]).unwrap();
    let done: Vec<usize> = (0..6)
        .map(|part| if part == 5 { 0 } else { 1 << 20 })
        .collect();
    let note = serde_json::json!({"size": SIZE, "part": 1 << 20, "done": done});
    std::fs::write(
        machine
            .blobs
            .folder()
            .join(format!(".partial-{digest}.json")),
        note.to_string(),
    )
    .unwrap();
    let held = machine.pull("hf:user/repo:Q4_1").finish().await.unwrap();
    assert_eq!(held.weights(), digest);
    assert_eq!(machine.left_overs(), 0);
}
