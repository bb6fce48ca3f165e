//! Batches against a scripted answerer: what is asked, how often, and what a crash costs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::*;

/// Answers by what a line's body asks for, and remembers what was asked.
#[derive(Default)]
struct Script {
    asked: Mutex<Vec<String>>,
    under_way: AtomicUsize,
    most: AtomicUsize,
    /// Lines that say `hold` wait for this.
    open: AtomicBool,
    opened: Notify,
    came: Notify,
}

impl Script {
    fn times(&self, what: &str) -> usize {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|body| body.contains(what)).count()
    }

    fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
        self.opened.notify_waiters();
    }

    async fn answer(&self, body: &Value) -> Told {
        let reply = |status: u16| Reply {
            status,
            request_id: Some("job".into()),
            body: serde_json::value::to_raw_value(body).unwrap(),
        };
        let asked = self.times(&body.to_string());
        match body["do"].as_str().unwrap_or_default() {
            "refuse" => Told::Answer(reply(400)),
            "fail" => Told::MayPass {
                reply: reply(503),
                after: None,
                tries: LINE_TRIES,
            },
            "fail twice" if asked <= 2 => Told::MayPass {
                reply: reply(503),
                after: Some(Duration::from_millis(3)),
                tries: LINE_TRIES,
            },
            "stop" if asked <= 50 => Told::NotNow {
                after: Duration::from_millis(1),
            },
            "forbid" => Told::Never {
                why: "the key is gone".into(),
            },
            "hold" => {
                while !self.open.load(Ordering::SeqCst) {
                    let opened = self.opened.notified();
                    if self.open.load(Ordering::SeqCst) {
                        break;
                    }
                    opened.await;
                }
                Told::Answer(reply(200))
            }
            _ => Told::Answer(reply(200)),
        }
    }
}

struct Leaving<'a>(&'a AtomicUsize);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Asker for Script {
    fn ask(&self, asked: Asked) -> BoxFuture<'_, Told> {
        async move {
            let body: Value = serde_json::from_str(&asked.body).unwrap();
            self.asked.lock().unwrap().push(body.to_string());
            let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
            let _leaving = Leaving(&self.under_way);
            self.most.fetch_max(now, Ordering::SeqCst);
            self.came.notify_one();
            self.answer(&body).await
        }
        .boxed()
    }
}

struct Bench {
    folder: tempfile::TempDir,
    script: Arc<Script>,
    batches: Batches,
    halt: CancellationToken,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["files", "batches"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        Self::at(folder)
    }

    fn at(folder: tempfile::TempDir) -> Self {
        let (script, halt) = (Arc::new(Script::default()), CancellationToken::new());
        let kept = KeptFiles::open(&folder.path().join("files")).unwrap();
        let batches = Batches::open_at(
            &folder.path().join("batches"),
            kept,
            script.clone(),
            halt.clone(),
            Duration::from_micros(100),
        );
        Self {
            batches: batches.unwrap(),
            folder,
            script,
            halt,
        }
    }

    /// As after a crash: nothing is told that it ends.
    fn crash(self) -> Self {
        // The tasks of the old life hold it; in a process that was killed they would be gone.
        self.halt.cancel();
        Self::at(self.folder)
    }

    fn file(&self, text: &str, purpose: Purpose) -> FileId {
        let mut writer = self.batches.kept().writer(&ann(), now_ms()).unwrap();
        writer.append(text.as_bytes()).unwrap();
        writer.commit("in.jsonl".into(), purpose, None).unwrap().id
    }

    fn submit(&self, lines: &[&str]) -> Batch {
        let lines = lines.iter().enumerate();
        let text: String = lines.map(|(n, what)| line(n, what)).collect();
        let input = self.file(&text, Purpose::Batch);
        self.batches.create(wanted(input)).unwrap()
    }

    async fn until(&self, id: BatchId, status: Status) -> Batch {
        loop {
            let batch = self.batches.get(&ann(), id).unwrap();
            if batch.status == status {
                return batch;
            }
            assert!(!batch.status.is_over(), "{batch:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// The rows of a file, by their names.
    fn rows(&self, id: Option<FileId>) -> BTreeMap<String, Value> {
        let Some(id) = id else {
            return BTreeMap::new();
        };
        let text = std::fs::read_to_string(self.folder.path().join("files").join(id.to_string()));
        let text = text.unwrap();
        let rows: Vec<Value> = text
            .lines()
            .map(|row| serde_json::from_str(row).unwrap())
            .collect();
        let named = rows.iter().map(|row| {
            let name = row["custom_id"].as_str().unwrap();
            (name.to_owned(), row.clone())
        });
        let named: BTreeMap<_, _> = named.collect();
        assert_eq!(named.len(), rows.len(), "a row stands there twice");
        named
    }
}

fn ann() -> Client {
    Client::Key("ann".into())
}

fn line(n: usize, what: &str) -> String {
    let row = json!({
        "custom_id": format!("line {n}"), "method": "POST", "url": "/v1/embeddings",
        "body": { "n": format!("<{n}>"), "do": what },
    });
    format!("{row}\n")
}

fn wanted(input: FileId) -> Wanted {
    Wanted {
        owner: ann(),
        scope: "circle".into(),
        network: "00".into(),
        endpoint: Endpoint::Embeddings,
        input,
        metadata: None,
        files_live: None,
    }
}

#[tokio::test]
async fn good_answers_and_errors_have_a_file_each() {
    let bench = Bench::new();
    let id = bench.submit(&["", "refuse", ""]).id;
    let batch = bench.until(id, Status::Completed).await;
    let counts = batch.counts;
    assert_eq!((counts.total, counts.completed, counts.failed), (3, 2, 1));
    let (good, bad) = (bench.rows(batch.output), bench.rows(batch.errors));
    assert_eq!(good.keys().collect::<Vec<_>>(), ["line 0", "line 2"]);
    assert_eq!(good["line 2"]["response"]["body"]["n"], "<2>");
    assert_eq!(good["line 2"]["response"]["request_id"], "job");
    assert_eq!(bad["line 1"]["response"]["status_code"], 400);
    assert_eq!(bad["line 1"]["error"], Value::Null);
    assert_eq!(
        bench.script.times("<1>"),
        1,
        "what is wrong is not asked again"
    );
    let kept = bench.batches.kept();
    let output = kept.get(&ann(), batch.output.unwrap(), 0).unwrap();
    assert_eq!(output.purpose, Purpose::BatchOutput);
    assert!(output.bytes > 0);
}

#[tokio::test]
async fn what_may_pass_is_asked_again_a_bounded_number_of_times() {
    let bench = Bench::new();
    let id = bench.submit(&["fail twice", "fail", "stop"]).id;
    let batch = bench.until(id, Status::Completed).await;
    let times = ["<0>", "<1>", "<2>"].map(|n| bench.script.times(n));
    assert_eq!(times, [3, LINE_TRIES as usize, 51]);
    assert_eq!(bench.rows(batch.output).len(), 2);
    assert_eq!(
        bench.rows(batch.errors)["line 1"]["response"]["status_code"],
        503
    );
}

#[tokio::test]
async fn lines_under_way_are_bounded_over_all_batches() {
    let bench = Bench::new();
    let many = ["hold"; 10];
    let ids = [bench.submit(&many).id, bench.submit(&many).id];
    while bench.script.under_way.load(Ordering::SeqCst) < LINES_AT_ONCE {
        bench.script.came.notified().await;
    }
    bench.script.open();
    for id in ids {
        bench.until(id, Status::Completed).await;
    }
    assert_eq!(bench.script.most.load(Ordering::SeqCst), LINES_AT_ONCE);
}

#[tokio::test]
async fn a_batch_whose_lines_are_wrong_asks_nothing() {
    let bench = Bench::new();
    let text = [line(1, ""), "nonsense\n".into(), line(1, "")].concat();
    let input = bench.file(&text, Purpose::Batch);
    let id = bench.batches.create(wanted(input)).unwrap().id;
    let batch = bench.until(id, Status::Failed).await;
    let wrong: Vec<_> = batch
        .wrong
        .iter()
        .map(|wrong| (wrong.line, wrong.code.as_str()))
        .collect();
    assert_eq!(
        wrong,
        [
            (Some(2), "invalid_json_line"),
            (Some(3), "duplicate_custom_id")
        ]
    );
    assert!(bench.script.asked.lock().unwrap().is_empty());
    assert_eq!((batch.output, batch.errors), (None, None));
}

#[tokio::test]
async fn a_stopped_batch_keeps_what_came_and_asks_no_more() {
    let bench = Bench::new();
    let id = bench
        .submit(&["", "hold", "hold", "hold", "hold", "hold"])
        .id;
    while bench.batches.get(&ann(), id).unwrap().counts.completed == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(bench.batches.cancel(&Client::Anonymous, id).is_err());
    let stopping = bench.batches.cancel(&ann(), id).unwrap();
    assert_eq!(stopping.status, Status::Cancelling);
    let batch = bench.until(id, Status::Cancelled).await;
    assert_eq!(bench.script.under_way.load(Ordering::SeqCst), 0);
    assert_eq!(bench.rows(batch.output).len(), 1);
    assert!(batch.errors.is_none());
    assert!(matches!(
        bench.batches.cancel(&ann(), id),
        Err(BatchError::Over { .. })
    ));
}

#[tokio::test]
async fn lines_that_were_not_asked_in_time_say_so() {
    let bench = Bench::new();
    let id = bench.submit(&["", "hold", "hold"]).id;
    while bench.batches.get(&ann(), id).unwrap().counts.completed == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // A day later.
    let past = |batch: &mut Batch| batch.stamps.expires_at = batch.stamps.created_at;
    bench.batches.change(id, past).unwrap();
    let bench = bench.crash();
    bench.batches.resume();
    let batch = bench.until(id, Status::Expired).await;
    assert_eq!(bench.rows(batch.output).len(), 1);
    let late = bench.rows(batch.errors);
    assert_eq!(late.keys().collect::<Vec<_>>(), ["line 1", "line 2"]);
    assert_eq!(late["line 1"]["error"]["code"], LATE);
    assert_eq!(batch.counts.failed, 2);
    assert!(batch.stamps.expired_at.is_some());
}

const LATE: &str = "batch_expired";

#[tokio::test]
async fn a_key_that_is_gone_ends_its_batch() {
    let bench = Bench::new();
    let id = bench.submit(&["forbid"]).id;
    let batch = bench.until(id, Status::Failed).await;
    assert_eq!(batch.wrong[0].message, "the key is gone");
}

#[tokio::test]
async fn after_a_crash_only_what_has_no_row_is_asked_again() {
    let bench = Bench::new();
    let lines: Vec<&str> = (0..12).map(|n| if n < 5 { "" } else { "hold" }).collect();
    let id = bench.submit(&lines).id;
    while bench.batches.get(&ann(), id).unwrap().counts.completed < 5 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let bench = bench.crash();
    bench.script.open();
    bench.batches.resume();
    let batch = bench.until(id, Status::Completed).await;
    let names: BTreeSet<String> = (0..12).map(|n| format!("line {n}")).collect();
    assert_eq!(
        bench
            .rows(batch.output)
            .into_keys()
            .collect::<BTreeSet<_>>(),
        names
    );
    for n in 0..12 {
        let again = usize::from(n >= 5);
        assert_eq!(bench.script.times(&format!("<{n}>")), again, "line {n}");
    }
}

#[tokio::test]
async fn after_a_crash_between_an_ending_and_its_files_the_files_are_made() {
    let bench = Bench::new();
    let id = bench.submit(&["", "", ""]).id;
    let batch = bench.until(id, Status::Completed).await;
    let output = batch.output.unwrap();
    // As it was on disk before the last write, with the file taken already.
    bench
        .batches
        .change(id, |batch| {
            batch.status = Status::Finalizing;
            batch.output = None;
        })
        .unwrap();
    let bench = bench.crash();
    bench.batches.resume();
    let batch = bench.until(id, Status::Completed).await;
    assert_eq!(batch.output, Some(output));
    assert_eq!(bench.rows(batch.output).len(), 3);
    assert!(bench.script.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_batch_that_was_being_stopped_is_stopped_after_a_crash() {
    let bench = Bench::new();
    let id = bench.submit(&["hold"]).id;
    bench.until(id, Status::InProgress).await;
    bench
        .batches
        .change(id, |batch| batch.status = Status::Cancelling)
        .unwrap();
    let bench = bench.crash();
    bench.batches.resume();
    bench.until(id, Status::Cancelled).await;
}

#[tokio::test]
async fn only_a_file_for_it_is_taken_and_only_so_many_run() {
    let bench = Bench::new();
    let other = bench.file("x", Purpose::UserData);
    assert!(matches!(
        bench.batches.create(wanted(other)),
        Err(BatchError::NotABatch { .. })
    ));
    assert!(bench.batches.create(wanted(FileId::draw())).is_err());
    let input = bench.file(&line(0, "hold"), Purpose::Batch);
    for _ in 0..LIVE_OF_ONE {
        bench.batches.create(wanted(input)).unwrap();
    }
    assert!(matches!(
        bench.batches.create(wanted(input)),
        Err(BatchError::TooMany(_))
    ));
    let kept = bench.batches.kept();
    while bench.script.under_way.load(Ordering::SeqCst) == 0 {
        bench.script.came.notified().await;
    }
    assert!(matches!(
        kept.delete(&ann(), input, now_ms()),
        Err(KeptError::InUse(_))
    ));
}
