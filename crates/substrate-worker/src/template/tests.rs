//! Renderings equal llama.cpp's own, and hostile templates are refused.

use super::*;

fn compile(source: &str) -> Template {
    Template::compile(source, "<s>", "</s>").expect("a sound template")
}

fn render(source: &str, messages: &[Message]) -> Result<String, TemplateError> {
    let rendered = compile(source).render(messages, None, None, true)?;
    Ok(String::from_utf8(rendered.to_vec()).expect("templates write text"))
}

#[test]
fn values_print_as_in_python() {
    let source = "{{ none }} {{ true }} {{ 1.0 }} {{ 'a' }}{{ missing }} {{ [1, 'b'] | tojson }}";
    assert_eq!(
        render(source, &[]).as_deref(),
        Ok("None True 1.0 a [1, \"b\"]")
    );
}

#[test]
fn generation_marks_are_ignored() {
    let source = "a{% generation %}b{%- endgeneration -%} c";
    assert_eq!(render(source, &[]).as_deref(), Ok("abc"));
}

#[test]
fn a_template_that_loops_is_refused() {
    let deep = "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
    assert_eq!(render(deep, &[]), Err(TemplateError::TooManySteps));
    let quiet = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    assert_eq!(render(quiet, &[]), Err(TemplateError::TooManySteps));
    let recursive = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
    assert!(render(recursive, &[]).is_err());
}

#[test]
fn a_template_that_writes_without_end_is_refused() {
    let source = "{% set x = 'x' * 1000000 %}{% for i in range(100) %}{{ x }}{% endfor %}";
    assert_eq!(render(source, &[]), Err(TemplateError::TooMuchOutput));
}

#[test]
fn the_templates_own_words_are_told_but_never_the_prompts() {
    let message = [Message::new("user", "secret")];
    let own = "{{ raise_exception('roles must alternate') }}";
    let refused = TemplateError::Refused("roles must alternate".into());
    assert_eq!(render(own, &message), Err(refused));
    let leaking = "\n{{ raise_exception('bad: ' + messages[0].content) }}";
    let error = render(leaking, &message)
        .expect_err("it raises")
        .to_string();
    assert_eq!(
        error,
        "the chat template fails in line 2: it raised an exception"
    );
    let wrong = "{{ messages[0].content.nothing() }}";
    let error = render(wrong, &message)
        .expect_err("no such method")
        .to_string();
    assert!(!error.contains("secret"), "{error}");
}

#[test]
fn broken_templates_are_refused_when_compiled() {
    for source in ["{% if %}", "{{", "{% include 'x' %}{% endfor %}"] {
        assert!(Template::compile(source, "", "").is_err(), "{source}");
    }
    let long = "x".repeat(MAX_SOURCE + 1);
    assert!(matches!(
        Template::compile(&long, "", ""),
        Err(TemplateError::TooLong(_))
    ));
}

#[test]
fn nothing_can_be_included() {
    assert!(render("{% include '/etc/passwd' %}", &[]).is_err());
}

#[test]
fn tools_that_are_not_json_are_the_requesters_fault() {
    let error = compile("x").render(&[], Some("{"), None, true).err();
    assert_eq!(error, Some(TemplateError::BadJson("the list of tools")));
}

#[test]
fn arguments_take_the_form_the_template_reads() {
    let objects = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}";
    let text = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.arguments }}{% endfor %}{% endfor %}";
    let call = |arguments: &str| {
        let calls = format!(
            r#"[{{"id":"1","type":"function","function":{{"name":"f","arguments":{arguments}}}}}]"#
        );
        [Message {
            tool_calls: Some(calls),
            ..Message::new("assistant", "")
        }]
    };
    let expected = Ok("{\"a\": [1, \"b\"]}");
    for source in [objects, text] {
        for arguments in [r#"{"a":[1,"b"]}"#, r#""{\"a\": [1, \"b\"]}""#] {
            assert_eq!(
                render(source, &call(arguments)).as_deref(),
                expected,
                "{source}"
            );
        }
    }
}

#[test]
fn a_template_is_told_whether_to_think_only_if_that_is_said() {
    let qwen = "{%- if enable_thinking is defined and enable_thinking is false -%}<think></think>{%- endif -%}{% if thinking %}t{% endif %}{{ reasoning_effort }}";
    let told = |thinking| {
        let rendered = compile(qwen)
            .render(&[], None, thinking, true)
            .expect("sound");
        String::from_utf8(rendered.to_vec()).expect("templates write text")
    };
    assert_eq!(told(None), "");
    assert_eq!(told(Some(Thinking::Off)), "<think></think>");
    assert_eq!(told(Some(Thinking::On)), "t");
    assert_eq!(told(Some(Thinking::High)), "thigh");
}
