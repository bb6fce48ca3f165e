//! The compiler of the system call policy: commented JSON in, BPF out.
//!
//! Invariant: every rule is checked by itself, so that an error can name its line: the name of the
//! call, the names of constants, the conditions, a reason, and no call listed twice.
//!
//! Absent by design: a default. A target whose constants the file does not give gets no program,
//! and the worker then refuses to seal instead of running unfiltered.

use std::collections::{BTreeMap, BTreeSet};

use seccompiler::{BpfProgram, TargetArch, compile_from_json, sock_filter};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

/// The programs of one stage. Both are installed; the stricter answer of the two counts.
pub struct Programs {
    /// Answers some calls with an error number and lets the rest pass.
    pub refuse: BpfProgram,
    /// Kills on every call that is not listed.
    pub allow: BpfProgram,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy<'a> {
    #[serde(rename = "about")]
    _about: Vec<String>,
    arch: BTreeMap<String, BTreeMap<String, u64>>,
    #[serde(borrow)]
    refuse: Vec<&'a RawValue>,
    #[serde(borrow)]
    allow: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Refuse {
    syscall: String,
    errno: String,
    why: String,
    unseen: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Allow {
    syscall: String,
    /// Alternatives, each a list of conditions that must all hold. Empty: always.
    #[serde(default)]
    when: Vec<Vec<Condition>>,
    why: String,
    /// Why it stays although no run of ours makes the call (`cargo xtask prove policy`).
    unseen: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    arg: u8,
    mask: Option<Number>,
    equals: Number,
}

/// A number, or names of constants joined by `|`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Plain(u64),
    Named(String),
}

type Constants = BTreeMap<String, u64>;

/// Compiles one file for one architecture; `None` if the file does not cover it.
pub fn compile(file: &str, text: &str, arch: &str) -> Result<Option<Programs>, String> {
    let policy: Policy =
        serde_json::from_str(text).map_err(|error| format!("{file}:{}: {error}", error.line()))?;
    let (Some(constants), Ok(target)) = (policy.arch.get(arch), TargetArch::try_from(arch)) else {
        return Ok(None);
    };
    let mut compiler = Compiler {
        constants,
        target,
        refused: Vec::new(),
        allowed: Vec::new(),
        seen: BTreeSet::new(),
    };
    let located = |rule: &RawValue, why: String| format!("{file}:{}: {why}", line(text, rule));
    for rule in policy.refuse {
        compiler
            .refuse(rule.get())
            .map_err(|why| located(rule, why))?;
    }
    for rule in policy.allow {
        compiler
            .allow(rule.get())
            .map_err(|why| located(rule, why))?;
    }
    compiler
        .finish()
        .map(Some)
        .map_err(|why| format!("{file}: {why}"))
}

/// The programs as Rust source.
pub fn to_rust(name: &str, programs: Option<&Programs>) -> String {
    let Some(programs) = programs else {
        return format!("pub(crate) const {name}: Option<Programs> = None;\n");
    };
    format!(
        "pub(crate) const {name}: Option<Programs> = Some(Programs {{ refuse: &[{}], allow: &[{}] }});\n",
        instructions(&programs.refuse),
        instructions(&programs.allow),
    )
}

fn instructions(program: &[sock_filter]) -> String {
    let one = |i: &sock_filter| format!("step({}, {}, {}, {}), ", i.code, i.jt, i.jf, i.k);
    program.iter().map(one).collect()
}

/// Turns our rules, one at a time, into rules of seccompiler's own JSON.
struct Compiler<'a> {
    constants: &'a Constants,
    target: TargetArch,
    refused: Vec<Value>,
    allowed: Vec<Value>,
    seen: BTreeSet<String>,
}

impl Compiler<'_> {
    fn refuse(&mut self, rule: &str) -> Result<(), String> {
        let rule: Refuse = parse(rule)?;
        self.begin(&rule.syscall, &rule.why, rule.unseen.as_deref())?;
        if rule.errno != "ENOSYS" {
            return Err(format!("errno \"{}\" is not ENOSYS", rule.errno));
        }
        let rule = json!({ "syscall": rule.syscall });
        self.check(&rule)?;
        // Of two filters the severer answer counts, so the killing one must let it pass.
        self.allowed.push(rule.clone());
        self.refused.push(rule);
        Ok(())
    }

    fn allow(&mut self, rule: &str) -> Result<(), String> {
        let rule: Allow = parse(rule)?;
        self.begin(&rule.syscall, &rule.why, rule.unseen.as_deref())?;
        let mut alternatives = vec![json!({ "syscall": rule.syscall })];
        if !rule.when.is_empty() {
            alternatives.clear();
        }
        for conditions in &rule.when {
            let args = conditions.iter().map(|condition| self.condition(condition));
            let args = args.collect::<Result<Vec<_>, _>>()?;
            alternatives.push(json!({ "syscall": rule.syscall, "args": args }));
        }
        for alternative in alternatives {
            self.check(&alternative)?;
            self.allowed.push(alternative);
        }
        Ok(())
    }

    fn begin(&mut self, syscall: &str, why: &str, unseen: Option<&str>) -> Result<(), String> {
        if why.trim().is_empty() || unseen.is_some_and(|why| why.trim().is_empty()) {
            return Err(
                "a rule needs a reason in \"why\", and in \"unseen\" if it has that".to_owned(),
            );
        }
        match self.seen.insert(syscall.to_owned()) {
            true => Ok(()),
            false => Err(format!("system call \"{syscall}\" is listed twice")),
        }
    }

    fn condition(&self, condition: &Condition) -> Result<Value, String> {
        let operator = match &condition.mask {
            Some(mask) => json!({ "masked_eq": self.value(mask)? }),
            None => json!("eq"),
        };
        // Every argument we look at is an int or a flag word in its low half.
        Ok(json!({
            "index": condition.arg,
            "type": "dword",
            "op": operator,
            "val": self.value(&condition.equals)?,
        }))
    }

    fn value(&self, number: &Number) -> Result<u64, String> {
        match number {
            Number::Plain(value) => Ok(*value),
            Number::Named(names) => names.split('|').try_fold(0, |bits, name| {
                let constant = self.constants.get(name);
                Ok(bits | constant.ok_or_else(|| format!("unknown constant \"{name}\""))?)
            }),
        }
    }

    /// Compiles a rule by itself, so that what is wrong with it is found at its line.
    fn check(&self, rule: &Value) -> Result<(), String> {
        let rules = std::slice::from_ref(rule);
        program(rules, "kill_process", &json!("allow"), self.target).map(drop)
    }

    fn finish(self) -> Result<Programs, String> {
        let refuse = match self.refused.is_empty() {
            true => Vec::new(),
            false => {
                let errno = json!({ "errno": libc::ENOSYS });
                program(&self.refused, "allow", &errno, self.target)?
            }
        };
        let allow = program(&self.allowed, "kill_process", &json!("allow"), self.target)?;
        Ok(Programs { refuse, allow })
    }
}

fn program(
    rules: &[Value],
    otherwise: &str,
    on_match: &Value,
    target: TargetArch,
) -> Result<BpfProgram, String> {
    let filter = json!({ "worker": {
        "mismatch_action": otherwise,
        "match_action": on_match,
        "filter": rules,
    } });
    let mut programs = compile_from_json(filter.to_string().as_bytes(), target)
        .map_err(|error| error.to_string())?;
    programs
        .remove("worker")
        .ok_or_else(|| "no program came out".to_owned())
}

fn parse<'a, T: Deserialize<'a>>(rule: &'a str) -> Result<T, String> {
    serde_json::from_str(rule).map_err(|error| error.to_string())
}

/// The line of a value within the text it was borrowed from.
pub fn line(text: &str, value: &RawValue) -> usize {
    let offset = value.get().as_ptr().addr() - text.as_ptr().addr();
    1 + text[..offset].matches('\n').count()
}
