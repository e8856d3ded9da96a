//! Tests of [`super`].

use super::*;

/// As kubeadm writes it, with a second context, and what other programs add.
const FILE: &str = r#"
apiVersion: v1
kind: Config
preferences: {}
current-context: kubernetes-admin@kubernetes
clusters:
- cluster:
    certificate-authority-data: Q0E=
    server: https://10.0.0.1:6443
  name: kubernetes
- name: other
  cluster: {server: "https://192.0.2.1", certificate-authority: pki/ca.crt, tls-server-name: kubernetes,
    extensions: [{name: x, extension: {a: 1}}]}
contexts:
- context:
    cluster: kubernetes
    user: kubernetes-admin
  name: kubernetes-admin@kubernetes
- context: {cluster: other, user: robot, namespace: shop}
  name: second
- context: {cluster: other}
  name: nobody
users:
- name: kubernetes-admin
  user:
    client-certificate-data: Q0VSVA==
    client-key-data: S0VZ
- name: robot
  user: {token: written, tokenFile: token}
"#;

fn read_text(text: &str) -> Result<Kubeconfig, String> {
    parse(Path::new("/etc/k/config"), text)
}

fn error(text: &str) -> String {
    let read = read_text(text).and_then(|config| config.access(None).map(drop));
    read.unwrap_err()
}

#[test]
fn the_current_context_tells_server_authority_and_certificate() {
    let config = read_text(FILE).unwrap();
    let certificate = Certificate { chain: b"CERT".to_vec(), key: b"KEY".to_vec() };
    let access = Access {
        url: "https://10.0.0.1:6443".parse().unwrap(),
        server_name: None,
        trust: Trust::Signed(b"CA".to_vec()),
        certificate: Some(certificate),
    };
    assert_eq!(config.access(None).unwrap(), access);
    assert_eq!(config.token().unwrap(), None);
    let elsewhere: KubeUrl = "https://127.0.0.1:1".parse().unwrap();
    assert_eq!(config.access(Some(&elsewhere)).unwrap(), Access { url: elsewhere, ..access });
    assert!(!format!("{config:?}").contains("S0VZ"), "secrets are not shown");
    // JSON is YAML, and what is null is absent.
    let json = r#"{"current-context":"c","users":null,"contexts":[{"name":"c","context":{"cluster":"k"}}],
        "clusters":[{"name":"k","cluster":{"server":"http://127.0.0.1:8001"}}]}"#;
    let access = read_text(json).unwrap().access(None).unwrap();
    assert_eq!((access.trust, access.certificate), (Trust::Anybody, None), "a proxy in clear text");
}

#[test]
fn files_are_beside_it_and_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let file = path("config");
    std::fs::write(&file, FILE.replace("kubernetes-admin@kubernetes\nclusters", "second\nclusters")).unwrap();
    std::fs::create_dir(path("pki")).unwrap();
    let error = read(&file).unwrap().access(None).unwrap_err();
    assert!(error.contains("pki/ca.crt") && error.contains("No such file"), "{error}");
    for (ca, token) in [("one", "first"), ("two", "second")] {
        std::fs::write(path("pki/ca.crt"), ca).unwrap();
        std::fs::write(path("token"), format!(" {token}\n")).unwrap();
        let config = read(&file).unwrap();
        let access = config.access(None).unwrap();
        assert_eq!(access.trust, Trust::Signed(ca.as_bytes().to_vec()));
        assert_eq!(
            (access.url.to_string(), access.server_name.as_deref()),
            ("https://192.0.2.1:443".into(), Some("kubernetes"))
        );
        assert_eq!(config.token().unwrap().unwrap(), token, "a file comes before what is written");
    }
    std::fs::remove_file(path("token")).unwrap();
    assert!(read(&file).unwrap().token().unwrap_err().contains("token: No such file"));
    std::fs::write(&file, vec![b' '; 2 << 20]).unwrap();
    assert!(read(&file).unwrap_err().contains("more than a MiB"));
}

#[test]
fn what_cannot_be_used_says_so() {
    let user = "client-certificate-data: Q0VSVA==\n    client-key-data: S0VZ";
    let with = |replacement: &str| FILE.replace(user, replacement);
    for (text, word) in [
        (String::new(), "current-context"),
        ("- a\n- b".to_owned(), "no kubeconfig"),
        ("clusters: [".to_owned(), "no kubeconfig"),
        (FILE.replace("current-context: kubernetes-admin@kubernetes", "current-context: ''"), "no current-context"),
        (FILE.replace("current-context: k", "current-context: x"), "\"xubernetes-admin@kubernetes\""),
        (FILE.replace("    cluster: kubernetes\n", "    cluster: gone\n"), "no cluster \"gone\""),
        (FILE.replace("    user: kubernetes-admin\n", "    user: gone\n"), "no user \"gone\""),
        (FILE.replace("https://10.0.0.1:6443", "https://rancher/k8s/clusters/c"), "URL without a path"),
        (FILE.replace("https://10.0.0.1:6443", ""), "URL without a path"),
        (FILE.replace("certificate-authority-data: Q0E=", "insecure: true"), "no certificate-authority"),
        (FILE.replace("Q0E=", "'%%'"), "certificate-authority-data is no base64"),
        (FILE.replace("server: https://10", "proxy-url: socks5://p\n    server: https://10"), "`proxy-url`"),
        (with("exec: {command: aws, args: [eks]}"), "`exec`"),
        (with("auth-provider: {name: gcp}"), "`auth-provider`"),
        (with("username: me\n    password: x"), "`username`"),
        (with("as: admin"), "`as`"),
        (with("client-certificate-data: Q0VSVA=="), "no client-key"),
        (with("client-key-data: S0VZ"), "no client-certificate"),
        (with("client-certificate: /nonexistent/c\n    client-key-data: S0VZ"), "/nonexistent/c: No such file"),
    ] {
        let error = error(&text);
        assert!(error.contains(word), "{error:?} has no {word:?}");
        assert!(!error.contains("S0VZ"), "a key is shown: {error}");
    }
    // Nobody's words: a server may let everybody in.
    let nobody = FILE.replace("kubernetes-admin@kubernetes\nclusters", "nobody\nclusters");
    assert_eq!(read_text(&nobody).unwrap().token().unwrap(), None);
    let insecure = FILE.replace("certificate-authority-data: Q0E=", "insecure-skip-tls-verify: true");
    assert_eq!(read_text(&insecure).unwrap().access(None).unwrap().trust, Trust::Anybody);
}
