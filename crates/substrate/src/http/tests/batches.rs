//! Files and batches over HTTP, as OpenAI's clients ask for them.

use std::time::Duration;

use serde_json::{Value, json};

use super::double::{ADMIN_KEY, PLAIN_KEY};
use super::*;

/// A listener and whom it is asked by.
struct Asked {
    double: Double,
    key: Option<String>,
}

impl Asked {
    fn by(key: Option<&str>) -> Self {
        Self {
            double: Double::start(),
            key: key.map(|key| format!("Bearer {key}")),
        }
    }

    async fn ask(&self, method: &str, path: &str, kind: &str, body: impl Into<Body>) -> Heard {
        let mut headers = vec![("content-type", kind)];
        if let Some(key) = &self.key {
            headers.push(("authorization", key));
        }
        send(
            &mut self.double.router(),
            request(method, path, &headers, body),
        )
        .await
    }

    async fn get(&self, path: &str) -> Heard {
        self.ask("GET", path, "", "").await
    }

    async fn post(&self, path: &str, body: &Value) -> Heard {
        self.ask("POST", path, "application/json", body.to_string())
            .await
    }

    async fn upload(&self, fields: &[(&str, &str)], file: &str) -> Heard {
        let form = "multipart/form-data; boundary=cut";
        self.ask("POST", "/v1/files", form, form_of(fields, file))
            .await
    }

    async fn kept(&self, file: &str) -> String {
        let heard = self.upload(&[("purpose", "batch")], file).await;
        assert_eq!(heard.status, 200, "{}", heard.text);
        text(&heard, "id")
    }

    async fn batch(&self, lines: &str, more: Value) -> Heard {
        let input = self.kept(lines).await;
        let mut wish = json!({
            "input_file_id": input, "endpoint": "/v1/chat/completions", "completion_window": "24h",
        });
        for (key, value) in more.as_object().unwrap() {
            wish[key] = value.clone();
        }
        self.post("/v1/batches", &wish).await
    }

    async fn over(&self, id: &str) -> Value {
        loop {
            let batch = value(&self.get(&format!("/v1/batches/{id}")).await);
            let status = batch["status"].as_str().unwrap();
            if ["completed", "failed", "cancelled", "expired"].contains(&status) {
                return batch;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn rows(&self, file: &Value) -> Vec<Value> {
        let path = format!("/v1/files/{}/content", file.as_str().unwrap());
        let heard = self.get(&path).await;
        let rows = heard.text.lines();
        let mut rows: Vec<Value> = rows.map(|row| serde_json::from_str(row).unwrap()).collect();
        rows.sort_by_key(|row| row["custom_id"].to_string());
        rows
    }
}

fn form_of(fields: &[(&str, &str)], file: &str) -> String {
    let mut form = String::new();
    for (name, value) in fields {
        form +=
            &format!("--cut\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
    }
    let head = "content-disposition: form-data; name=\"file\"; filename=\"in.jsonl\"";
    form + &format!("--cut\r\n{head}\r\n\r\n{file}\r\n--cut--\r\n")
}

fn value(heard: &Heard) -> Value {
    serde_json::from_str(&heard.text).unwrap_or_else(|_| panic!("{}", heard.text))
}

fn text(heard: &Heard, key: &str) -> String {
    value(heard)[key].as_str().unwrap().to_owned()
}

fn refused(heard: &Heard) -> String {
    let told = value(heard);
    let error = &told["error"];
    format!(
        "{} {} {}",
        heard.status.as_u16(),
        error["code"],
        error["param"]
    )
}

fn chat(id: &str, model: &str) -> String {
    let body = json!({ "model": model, "messages": [{ "role": "user", "content": "hi" }] });
    let line = json!({
        "custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": body,
    });
    format!("{line}\n")
}

#[tokio::test]
async fn a_file_is_kept_listed_given_back_and_deleted() {
    let asked = Asked::by(None);
    let bytes = "one\r\n--cu \ntwo";
    let fields = [
        ("purpose", "user_data"),
        ("expires_after[anchor]", "created_at"),
        ("expires_after[seconds]", "3600"),
    ];
    let heard = asked.upload(&fields, bytes).await;
    let file = value(&heard);
    let expected = json!({
        "id": file["id"], "object": "file", "bytes": 14, "created_at": file["created_at"],
        "expires_at": file["created_at"].as_u64().unwrap() + 3_600,
        "filename": "in.jsonl", "purpose": "user_data", "status": "processed",
    });
    assert_eq!(file, expected);
    let path = format!("/v1/files/{}", file["id"].as_str().unwrap());
    assert_eq!(value(&asked.get(&path).await), file);
    let content = asked.get(&format!("{path}/content")).await;
    assert_eq!(
        (content.text.as_str(), content.header("content-length")),
        (bytes, "14")
    );
    let batch = asked.kept("x").await;
    let listed = value(&asked.get("/v1/files?limit=1&order=asc").await);
    assert_eq!(
        (listed["data"][0]["id"].clone(), listed["has_more"].clone()),
        (file["id"].clone(), json!(true))
    );
    let rest = format!("/v1/files?order=asc&after={}", file["id"].as_str().unwrap());
    let rest = value(&asked.get(&rest).await);
    assert_eq!(
        (&rest["data"][0]["id"], &rest["has_more"]),
        (&json!(batch), &json!(false))
    );
    let of_batches = value(&asked.get("/v1/files?purpose=batch").await);
    assert_eq!(of_batches["data"].as_array().unwrap().len(), 1);
    let deleted = asked.ask("DELETE", &path, "", "").await;
    assert_eq!(
        value(&deleted),
        json!({ "id": file["id"], "object": "file", "deleted": true })
    );
    assert_eq!(refused(&asked.get(&path).await), "404 \"not_found\" null");
}

#[tokio::test]
async fn what_is_not_kept_is_told_why() {
    let asked = Asked::by(None);
    for (fields, expected) in [
        (&[][..], "400 \"invalid_value\" \"purpose\""),
        (
            &[("purpose", "fine-tune")][..],
            "400 \"not_implemented\" \"purpose\"",
        ),
        (
            &[("purpose", "joy")][..],
            "400 \"invalid_value\" \"purpose\"",
        ),
        (
            &[("purpose", "batch"), ("expires_after[seconds]", "7")][..],
            "400 \"invalid_value\" \"expires_after\"",
        ),
        (
            &[
                ("purpose", "batch"),
                ("expires_after[anchor]", "created_at"),
                ("expires_after[seconds]", "7"),
            ][..],
            "400 \"invalid_value\" \"expires_after.seconds\"",
        ),
    ] {
        assert_eq!(
            refused(&asked.upload(fields, "x").await),
            expected,
            "{fields:?}"
        );
    }
    let form = "multipart/form-data; boundary=cut";
    let no_file = "--cut\r\ncontent-disposition: form-data; name=purpose\r\n\r\nbatch\r\n--cut--";
    let heard = asked.ask("POST", "/v1/files", form, no_file).await;
    assert_eq!(refused(&heard), "400 \"invalid_value\" \"file\"");
    let half = &form_of(&[("purpose", "batch")], "half")[..120];
    let heard = asked.ask("POST", "/v1/files", form, half.to_owned()).await;
    assert_eq!(refused(&heard), "400 \"invalid_request\" null");
    let heard = asked
        .ask("POST", "/v1/files", "application/json", "{}")
        .await;
    assert_eq!(refused(&heard), "400 \"invalid_request\" null");
    let kept = value(&asked.get("/v1/files").await);
    assert_eq!(kept["data"], json!([]));
}

#[tokio::test]
async fn a_batch_is_answered_by_the_handlers_that_answer_everybody() {
    let asked = Asked::by(None);
    let lines = [
        chat("a", "tiny:1"),
        chat("b", "no-such:1"),
        chat("c", "tiny"),
    ]
    .concat();
    let heard = asked
        .batch(&lines, json!({ "metadata": { "for": "me" } }))
        .await;
    let made = value(&heard);
    assert_eq!(
        (heard.status.as_u16(), &made["status"]),
        (200, &json!("validating"))
    );
    let batch = asked.over(made["id"].as_str().unwrap()).await;
    assert_eq!(batch["status"], "completed");
    assert_eq!(batch["metadata"], json!({ "for": "me" }));
    assert_eq!(
        batch["request_counts"],
        json!({ "total": 3, "completed": 2, "failed": 1 })
    );
    let good = asked.rows(&batch["output_file_id"]).await;
    assert_eq!(good.len(), 2);
    let (response, id) = (&good[0]["response"], &good[0]["id"]);
    assert!(id.as_str().unwrap().starts_with("batch_req_"));
    assert_eq!(response["status_code"], 200);
    assert_eq!(response["request_id"].as_str().unwrap().len(), 32);
    assert_eq!(
        response["body"]["choices"][0]["message"]["content"],
        "Hello world!"
    );
    let bad = asked.rows(&batch["error_file_id"]).await;
    assert_eq!(bad[0]["custom_id"], "b");
    assert_eq!(
        bad[0]["response"]["body"]["error"]["code"],
        "model_not_found"
    );
    let listed = value(&asked.get("/v1/batches").await);
    assert_eq!(listed["data"][0], batch);
    let jobs = asked
        .double
        .seen
        .submitted
        .load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(jobs, 2, "one for each line that has a model");
    let cancel = format!("/v1/batches/{}/cancel", batch["id"].as_str().unwrap());
    let over = asked.post(&cancel, &json!({})).await;
    assert_eq!(refused(&over), "400 \"batch_over\" null");
}

#[tokio::test]
async fn a_batch_of_broken_lines_fails_with_their_numbers() {
    let asked = Asked::by(None);
    let lines = [chat("a", "tiny:1"), "{}\n".into(), chat("a", "tiny:1")].concat();
    let made = value(&asked.batch(&lines, json!({})).await);
    let batch = asked.over(made["id"].as_str().unwrap()).await;
    assert_eq!(batch["status"], "failed");
    assert_eq!(
        batch["errors"],
        json!({ "object": "list", "data": [
            { "code": "invalid_custom_id", "line": 2, "message": "custom_id is required", "param": "custom_id" },
            { "code": "duplicate_custom_id", "line": 3, "message": "custom_id 'a' is used by an earlier line", "param": "custom_id" },
        ] })
    );
}

#[tokio::test]
async fn a_batch_that_cannot_be_is_refused_by_name() {
    let asked = Asked::by(None);
    for (more, expected) in [
        (json!({ "endpoint": "/v1/audio/speech" }), "endpoint"),
        (json!({ "completion_window": "1h" }), "completion_window"),
        (json!({ "metadata": { "x".repeat(65): "y" } }), "metadata"),
        (
            json!({ "output_expires_after": { "anchor": "created_at", "seconds": 1 } }),
            "output_expires_after",
        ),
    ] {
        let heard = asked.batch("", more).await;
        assert_eq!(
            refused(&heard),
            format!("400 \"invalid_value\" \"{expected}\"")
        );
    }
    let heard = asked
        .batch("", json!({ "input_file_id": "../../device" }))
        .await;
    assert_eq!(refused(&heard), "404 \"not_found\" \"input_file_id\"");
}

#[tokio::test]
async fn a_key_sees_nothing_of_anothers() {
    let admin = Asked::by(Some(ADMIN_KEY));
    let file = admin.kept("x").await;
    let made = value(&admin.batch(&chat("a", "tiny:1"), json!({})).await);
    let plain = Asked {
        key: Some(format!("Bearer {PLAIN_KEY}")),
        double: admin.double,
    };
    assert_eq!(plain.get(&format!("/v1/files/{file}")).await.status, 404);
    let nobody = Asked {
        key: None,
        double: plain.double,
    };
    let id = made["id"].as_str().unwrap();
    let cancel = format!("/v1/batches/{id}/cancel");
    assert_eq!(nobody.post(&cancel, &json!({})).await.status, 404);
    assert_eq!(value(&nobody.get("/v1/batches").await)["data"], json!([]));
    assert_eq!(value(&nobody.get("/v1/files").await)["data"], json!([]));
}

#[tokio::test]
async fn lines_are_jobs_that_may_wait_and_a_persons_are_not() {
    let asked = Asked::by(None);
    let made = value(&asked.batch(&chat("a", "tiny:1"), json!({})).await);
    asked.over(made["id"].as_str().unwrap()).await;
    let body = r#"{"model":"tiny:1","messages":[{"role":"user","content":"hi"}]}"#;
    asked
        .post("/v1/chat/completions", &serde_json::from_str(body).unwrap())
        .await;
    assert_eq!(*asked.double.seen.patient.lock().unwrap(), [true, false]);
}
