//! What the server knows, and what it says. Pure.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// A question that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Path and query.
    pub path: String,
    /// The answer's status.
    pub status: u16,
}

/// What to say to a question.
pub enum Answer {
    /// This, with a status.
    Whole(u16, Vec<u8>),
    /// A watch of the collection at this path, from this event on.
    Watch(String, usize),
}

/// What a watch has to say next.
pub enum Next {
    /// These lines.
    Lines(Vec<String>),
    /// A part of a line, and then the connection is gone.
    Broken(String),
    /// The end of the answer.
    End,
    /// Nothing yet.
    Wait,
}

/// All of it.
#[derive(Default)]
pub struct State {
    /// The token that is accepted.
    pub token: String,
    /// Paths that are forbidden, by their beginning.
    pub forbidden: Vec<String>,
    /// What was asked.
    pub requests: Vec<Request>,
    /// How many watches run.
    pub watches: usize,
    /// Whether nobody is answered at all.
    pub away: bool,
    answers: HashMap<String, Vec<u8>>,
    node: String,
    /// By their paths, with the query that all questions for them have.
    collections: HashMap<String, Collection>,
    version: u64,
    /// How often watches were broken or ended.
    broken: u64,
    ended: u64,
    over: bool,
}

/// Objects that are listed and watched together.
#[derive(Default)]
struct Collection {
    objects: BTreeMap<String, Value>,
    /// Events with their versions; those of watches that are told that something is forgotten, too.
    events: Vec<(u64, String)>,
    /// Watches from before this version are refused.
    oldest: u64,
}

/// Where the pods of a node are.
fn pods_of(node: &str) -> String {
    format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}")
}

impl State {
    /// Whether the server is to end.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Ends the server.
    pub fn end(&mut self) {
        self.over = true;
    }

    pub fn answer(&mut self, path: &str, body: Vec<u8>) {
        self.answers.insert(path.to_owned(), body);
    }

    pub fn list(&mut self, node: &str, list: &Value) -> Result<()> {
        self.node = node.to_owned();
        self.list_at(&pods_of(node), list)
    }

    pub fn list_at(&mut self, path: &str, list: &Value) -> Result<()> {
        self.version = self.version.max(version(list)?);
        let collection = self.collections.entry(path.to_owned()).or_default();
        collection.oldest = self.version;
        collection.objects.clear();
        for object in list["items"].as_array().context("a list has items")? {
            collection.objects.insert(uid(object)?, object.clone());
        }
        Ok(())
    }

    pub fn event(&mut self, event: &Value) -> Result<()> {
        self.version = version(&event["object"])?;
        self.event_at(&pods_of(&self.node.clone()), event)
    }

    /// An object is so now, at the next version.
    pub fn put(&mut self, path: &str, object: &Value) -> Result<()> {
        let known =
            self.collections.get(path).is_some_and(|of| uid(object).is_ok_and(|uid| of.objects.contains_key(&uid)));
        self.happens(path, if known { "MODIFIED" } else { "ADDED" }, object)
    }

    /// An object is gone, at the next version.
    pub fn delete(&mut self, path: &str, object: &Value) -> Result<()> {
        self.happens(path, "DELETED", object)
    }

    fn happens(&mut self, path: &str, what: &str, object: &Value) -> Result<()> {
        self.version += 1;
        let mut object = object.clone();
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.event_at(path, &json!({ "type": what, "object": object }))
    }

    fn event_at(&mut self, path: &str, event: &Value) -> Result<()> {
        let object = &event["object"];
        let collection = self.collections.entry(path.to_owned()).or_default();
        match event["type"].as_str() {
            Some("DELETED") => drop(collection.objects.remove(&uid(object)?)),
            _ => drop(collection.objects.insert(uid(object)?, object.clone())),
        }
        collection.events.push((self.version, event.to_string()));
        Ok(())
    }

    pub fn bookmark(&mut self, version: u64) {
        self.version = version;
        let object = json!({ "kind": "Pod", "apiVersion": "v1", "spec": { "containers": null }, "status": {},
            "metadata": { "resourceVersion": version.to_string(), "creationTimestamp": null } });
        let event = json!({ "type": "BOOKMARK", "object": object }).to_string();
        self.collections.values_mut().for_each(|collection| collection.events.push((version, event.clone())));
    }

    pub fn break_watches(&mut self) {
        self.broken += 1;
    }

    pub fn end_watches(&mut self) {
        self.ended += 1;
    }

    pub fn forget(&mut self) {
        // Something happened that nobody hears of.
        self.version += 1;
        let event = json!({ "type": "ERROR", "object": expired(self.version) }).to_string();
        for collection in self.collections.values_mut() {
            collection.oldest = self.version;
            collection.events.push((self.version, event.clone()));
        }
        self.ended += 1;
    }

    /// What to say to a question for a path with this header `Authorization`.
    pub fn ask(&mut self, path: &str, authorization: &str) -> Answer {
        let answer = self.decide(path, authorization);
        let status = if let Answer::Whole(status, _) = &answer { *status } else { 200 };
        self.requests.push(Request { path: path.to_owned(), status });
        answer
    }

    fn decide(&self, path: &str, authorization: &str) -> Answer {
        let status = |code: u16, message: &str| {
            let body = json!({ "kind": "Status", "status": "Failure", "message": message, "code": code });
            Answer::Whole(code, body.to_string().into_bytes())
        };
        if authorization != format!("Bearer {}", self.token) {
            return status(401, "Unauthorized");
        }
        if self.forbidden.iter().any(|forbidden| path.starts_with(forbidden)) {
            return status(403, "this is forbidden to the service account");
        }
        if let Some(body) = self.answers.get(path) {
            return Answer::Whole(200, body.clone());
        }
        let found = self.collections.iter().find_map(|(at, of)| Some((at, of, path.strip_prefix(at.as_str())?)));
        let Some((at, collection, query)) = found else {
            return status(404, "the server could not find the requested resource");
        };
        let told = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let number = |name: &str| told(name).and_then(|value| value.parse::<u64>().ok());
        if told("watch") != Some("true") {
            // As from the cache, which knows no pages.
            let limit = number("limit").filter(|_| told("resourceVersion") != Some("0"));
            return Answer::Whole(200, self.page(collection, number("continue").unwrap_or(0), limit).into_bytes());
        }
        match number("resourceVersion") {
            Some(from) if from >= collection.oldest => {
                let events = &collection.events;
                let next = events.iter().position(|(version, _)| *version > from).unwrap_or(events.len());
                Answer::Watch(at.clone(), next)
            }
            _ => Answer::Whole(410, expired(collection.oldest).to_string().into_bytes()),
        }
    }

    fn page(&self, collection: &Collection, from: u64, limit: Option<u64>) -> String {
        let skipped = usize::try_from(from).unwrap_or(usize::MAX);
        let most = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
        let items: Vec<&Value> = collection.objects.values().skip(skipped).take(most).collect();
        let mut metadata = json!({ "resourceVersion": self.version.to_string() });
        let end = skipped.saturating_add(items.len());
        if let Some(remaining) = collection.objects.len().checked_sub(end).filter(|remaining| *remaining > 0) {
            metadata["continue"] = end.to_string().into();
            metadata["remainingItemCount"] = remaining.into();
        }
        json!({ "kind": "List", "apiVersion": "v1", "items": items, "metadata": metadata }).to_string()
    }

    /// What a watch at a path that has said the events before `said` says next. `since` is what [`State::interruptions`] was when
    /// it began.
    pub fn next(&self, path: &str, said: usize, since: (u64, u64)) -> Next {
        let rest = self.collections.get(path).and_then(|of| of.events.get(said..)).unwrap_or_default();
        if self.over || self.broken > since.0 {
            let line = rest.first().map_or(r#"{"type":"MODIF"#, |(_, line)| line.as_str());
            return Next::Broken(line[..line.len() / 2].to_owned());
        }
        if !rest.is_empty() {
            return Next::Lines(rest.iter().map(|(_, line)| line.clone()).collect());
        }
        if self.ended > since.1 { Next::End } else { Next::Wait }
    }

    /// How often watches were broken, and ended.
    pub fn interruptions(&self) -> (u64, u64) {
        (self.broken, self.ended)
    }
}

/// The `v1` `Status` that stands for 410 Gone.
fn expired(oldest: u64) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Expired", "code": 410,
        "message": format!("too old resource version: 1 ({oldest})") })
}

fn version(object: &Value) -> Result<u64> {
    let version = object["metadata"]["resourceVersion"].as_str().context("an object has a resourceVersion")?;
    version.parse().with_context(|| format!("reading the resourceVersion {version:?}"))
}

fn uid(pod: &Value) -> Result<String> {
    pod["metadata"]["uid"].as_str().map(str::to_owned).context("a pod has a UID")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, version: u64) -> Value {
        json!({ "metadata": { "uid": uid, "resourceVersion": version.to_string() } })
    }

    fn asked(state: &mut State, query: &str) -> Answer {
        state.ask(&format!("/api/v1/pods?fieldSelector=spec.nodeName%3Dn{query}"), "Bearer t")
    }

    #[test]
    fn lists_and_watches_go_together() {
        let mut state = State { token: "t".into(), ..State::default() };
        state.list("n", &json!({ "metadata": { "resourceVersion": "5" }, "items": [pod("a", 1)] })).unwrap();
        state.event(&json!({ "type": "ADDED", "object": pod("b", 6) })).unwrap();
        let Answer::Whole(200, list) = asked(&mut state, "") else { panic!("a list") };
        let list: Value = serde_json::from_slice(&list).unwrap();
        assert_eq!((list["items"].as_array().unwrap().len(), &list["metadata"]["resourceVersion"]), (2, &json!("6")));
        let Answer::Watch(at, from) = asked(&mut state, "&watch=true&resourceVersion=5") else { panic!("a watch") };
        assert!(matches!(state.next(&at, from, (0, 0)), Next::Lines(lines) if lines.len() == 1));
        let Answer::Watch(at, from) = asked(&mut state, "&watch=true&resourceVersion=6") else { panic!("a watch") };
        assert!(matches!(state.next(&at, from, (0, 0)), Next::Wait));
        state.forget();
        assert!(matches!(state.next(&at, from, (0, 0)), Next::Lines(lines) if lines[0].contains("410")));
        assert!(matches!(state.next(&at, from + 1, (0, 0)), Next::End));
        assert!(matches!(asked(&mut state, "&watch=true&resourceVersion=6"), Answer::Whole(410, _)));
        state.break_watches();
        assert!(matches!(state.next(&at, from, (0, 1)), Next::Broken(_)));
        state.put("/api/v1/nodes?", &pod("n1", 0)).unwrap();
        state.put("/api/v1/nodes?", &pod("n2", 0)).unwrap();
        state.put("/api/v1/nodes?", &pod("n3", 0)).unwrap();
        state.delete("/api/v1/nodes?", &pod("n2", 0)).unwrap();
        let mut names = Vec::new();
        let mut next = String::new();
        loop {
            let Answer::Whole(200, list) = state.ask(&format!("/api/v1/nodes?&limit=1{next}"), "Bearer t") else {
                panic!("a list")
            };
            let list: Value = serde_json::from_slice(&list).unwrap();
            names.extend(list["items"].as_array().unwrap().iter().map(|item| uid(item).unwrap()));
            let Some(token) = list["metadata"]["continue"].as_str() else { break };
            assert_eq!(list["metadata"]["remainingItemCount"], 1);
            next = format!("&continue={token}");
        }
        assert_eq!(names, ["n1", "n3"]);
        assert!(matches!(state.ask("/x", "Bearer old"), Answer::Whole(401, _)));
        assert_eq!(state.requests.last().unwrap().status, 401);
    }
}
