//! The landing page. Pure: facts in, HTML out.

use std::fmt::{self, Display, Write};

/// Pods that the page lists at most.
const MAX_PODS: usize = 500;

/// What the landing page shows.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// The agent's version, with the revision where it is known.
    pub version: String,
    /// The node's name.
    pub node: String,
    /// The probes and how they are.
    pub probes: Vec<ProbeLine>,
    /// The pods that are seen.
    pub pods: Vec<PodLine>,
}

/// A probe on the landing page.
#[derive(Debug, Clone, Default)]
pub struct ProbeLine {
    /// Its name.
    pub name: String,
    /// `ok`, `unsupported` or `failed`.
    pub state: String,
    /// Why, when it is not ok.
    pub reason: String,
}

/// A pod on the landing page.
#[derive(Debug, Clone, Default)]
pub struct PodLine {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The names of its containers.
    pub containers: Vec<String>,
}

const STYLE: &str = "\
:root{color-scheme:light dark}\
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
table{border-collapse:collapse;width:100%}\
th,td{text-align:left;padding:.3rem .8rem .3rem 0;border-bottom:1px solid #8884;vertical-align:top}\
td{overflow-wrap:anywhere}\
nav a{margin-right:1.2rem}\
.ok{color:#2a8a3e}.unsupported{color:#b07a00}.failed{color:#d03030;font-weight:600}";

/// The whole page. Everything from outside is escaped.
pub(super) fn page(status: &Status, paths: &[&str], waiting: &[&str]) -> String {
    let mut out = String::with_capacity(4096);
    // Writing to a String cannot fail.
    let _ = write_page(&mut out, status, paths, waiting);
    out
}

fn write_page(out: &mut String, status: &Status, paths: &[&str], waiting: &[&str]) -> fmt::Result {
    let Status { version, node, probes, pods } = status;
    write!(
        out,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>observer on {node}</title>\
         <style>{STYLE}</style></head><body><h1>observer</h1>\
         <p>What the containers of this node's pods say to each other, over localhost too, and what they use.</p>\
         <p>Node <b>{node}</b>, version {version}, {ready}.</p>\
         <nav>",
        node = Escaped(node),
        version = Escaped(version),
        ready = if waiting.is_empty() { "ready".to_owned() } else { format!("not ready: {}", waiting.join("; ")) },
    )?;
    for path in paths.iter().chain(&["/healthz", "/readyz"]) {
        write!(out, "<a href=\"{0}\">{0}</a>", Escaped(path))?;
    }
    out.write_str("</nav>")?;
    out.write_str("<h2>Probes</h2>")?;
    if probes.is_empty() {
        out.write_str("<p>None has told its state yet.</p>")?;
    } else {
        out.write_str("<table><tr><th>probe<th>state<th>reason</tr>")?;
        for probe in probes {
            let state = Escaped(&probe.state);
            let (name, reason) = (Escaped(&probe.name), Escaped(&probe.reason));
            write!(out, "<tr><td>{name}<td class=\"{state}\">{state}<td>{reason}</tr>")?;
        }
        out.write_str("</table>")?;
    }
    write!(out, "<h2>Pods ({})</h2>", pods.len())?;
    if !pods.is_empty() {
        out.write_str("<table><tr><th>namespace<th>pod<th>containers</tr>")?;
        for pod in pods.iter().take(MAX_PODS) {
            let containers = pod.containers.join(", ");
            let (namespace, name) = (Escaped(&pod.namespace), Escaped(&pod.name));
            write!(out, "<tr><td>{namespace}<td>{name}<td>{}</tr>", Escaped(&containers))?;
        }
        out.write_str("</table>")?;
        if pods.len() > MAX_PODS {
            write!(out, "<p>… and {} more.</p>", pods.len() - MAX_PODS)?;
        }
    }
    out.write_str("</body></html>\n")
}

/// Text as it may stand in HTML, in quoted attributes too.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_from_outside_is_escaped() {
        let evil = "\"'><script>alert(1)</script>&".to_owned();
        let status = Status {
            version: evil.clone(),
            node: evil.clone(),
            probes: vec![ProbeLine { name: evil.clone(), state: evil.clone(), reason: evil.clone() }],
            pods: vec![PodLine { namespace: evil.clone(), name: evil.clone(), containers: vec![evil.clone()] }],
        };
        let page = page(&status, &["/metrics"], &[]);
        assert!(!page.contains("<script") && !page.contains("\"'>"), "{page}");
        assert_eq!(page.matches("&lt;script&gt;").count(), 10);
    }

    #[test]
    fn long_lists_are_cut_and_waiting_is_said() {
        let status = Status { pods: vec![PodLine::default(); MAX_PODS + 7], ..Status::default() };
        let page = page(&status, &["/m", "/further"], &["no hooks"]);
        assert!(page.contains("and 7 more") && page.contains("Pods (507)") && page.contains("not ready: no hooks"));
        assert!(page.contains("href=\"/m\"") && page.contains("href=\"/further\""));
    }
}
