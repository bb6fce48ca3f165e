//! Models of one's own over Ollama's API: who may make them, what is refused, and how uploads come in.

use expect_test::expect;
use substrate_record::ContentHash;

use super::double::{ADMIN_KEY, PLAIN_KEY};
use super::*;

fn bearer(key: &str) -> String {
    format!("Bearer {key}")
}

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn making_takes_the_admin_right_and_json() {
    let double = Double::start();
    let mut router = double.router();
    let (admin, plain) = (bearer(ADMIN_KEY), bearer(PLAIN_KEY));
    let (admin, plain) = (("authorization", &*admin), ("authorization", &*plain));
    let mut told = String::new();
    for (body, headers) in [
        (r#"{"model":"own:1","from":"tiny:1"}"#, vec![JSON]),
        (r#"{"model":"own:1","from":"tiny:1"}"#, vec![JSON, plain]),
        (r#"{"model":"own:1","from":"tiny:1"}"#, vec![admin]),
        (r#"{"model":"own:1","from":"none:1"}"#, vec![JSON, admin]),
        (r#"{"model":"own:1"}"#, vec![JSON, admin]),
        (
            r#"{"model":"own:1","from":"tiny:1","stream":false}"#,
            vec![JSON, admin],
        ),
        (r#"{"model":"own:1","from":"tiny:1"}"#, vec![JSON, admin]),
    ] {
        let heard = send(&mut router, request("POST", "/api/create", &headers, body)).await;
        told += &heard.told();
    }
    expect![[r#"
        401
        {"error":"without a key nobody may make models; send `Authorization: Bearer <key>` with a key that has the admin right, or use the command line"}
        403
        {"error":"this key may not make models; send `Authorization: Bearer <key>` with a key that has the admin right, or use the command line"}
        415
        {"error":"this request must carry content-type: application/json"}
        404
        {"error":"model \"none:1\" not found, try pulling it first"}
        400
        {"error":"neither 'from' nor 'files' was specified"}
        200
        {"status":"success"}
        200
        {"status":"writing manifest"}
        {"status":"success"}

    "#]].assert_eq(&told);
}

#[tokio::test]
async fn an_upload_is_answered_as_ollama_answers_it() {
    let double = Double::start();
    let mut router = double.router();
    let admin = bearer(ADMIN_KEY);
    let admin = ("authorization", &*admin);
    let (here, new) = (ContentHash::of(b"here"), ContentHash::of(b"new"));
    let mut told = String::new();
    for (method, digest, headers, body) in [
        ("HEAD", format!("sha256:{here}"), vec![], ""),
        ("HEAD", format!("sha256-{new}"), vec![], ""),
        ("HEAD", "sha256:00".to_owned(), vec![], ""),
        ("POST", format!("sha256:{new}"), vec![], "new"),
        ("POST", format!("sha256:{new}"), vec![admin], "new"),
        ("POST", format!("sha256:{new}"), vec![admin], "old"),
        ("POST", format!("sha256:{here}"), vec![admin], "here"),
        ("POST", "md5:00".to_owned(), vec![admin], "x"),
        ("GET", format!("sha256:{here}"), vec![], ""),
    ] {
        let path = format!("/api/blobs/{digest}");
        let heard = send(&mut router, request(method, &path, &headers, body)).await;
        told += &format!("{method} {body:?} {}\n", heard.told().trim_end());
    }
    expect![[r#"
        HEAD "" 200
        HEAD "" 404
        HEAD "" 400
        POST "new" 401
        {"error":"without a key nobody may send models; send `Authorization: Bearer <key>` with a key that has the admin right, or use the command line"}
        POST "new" 201
        POST "old" 400
        {"error":"the bytes have another digest"}
        POST "here" 200
        POST "x" 400
        {"error":"invalid digest \"md5:00\": sha256: and 64 hexadecimal digits are expected"}
        GET "" 405
        {"error":"/api/blobs/sha256:fcec91509759ad995c2cd14bcb26b2720993faf61c29d379b270d442d92290eb does not answer GET"}
    "#]].assert_eq(&told);
}
