//! A browser: it keeps cookies, and goes only where the test sends it.

use std::collections::BTreeMap;

use reqwest::header::{HeaderMap, SET_COOKIE};
use reqwest::{Method, RequestBuilder};
use url::Url;

use crate::support::http::{self, Answer, send};

pub struct Browser {
    http: reqwest::Client,
    /// By origin, then by name. (A real one tells no ports apart.)
    jar: BTreeMap<String, BTreeMap<String, String>>,
}

impl Browser {
    pub fn new() -> Self {
        Self { http: http::client(), jar: BTreeMap::new() }
    }

    pub fn cookie(&self, url: &str, name: &str) -> Option<String> {
        self.jar.get(&origin(url)).and_then(|cookies| cookies.get(name)).cloned()
    }

    pub fn plant(&mut self, url: &str, name: &str, value: &str) {
        self.jar.entry(origin(url)).or_default().insert(name.to_owned(), value.to_owned());
    }

    /// A request with the cookies that belong there.
    pub fn request(&self, method: Method, url: &str) -> RequestBuilder {
        let request = self.http.request(method, url);
        let cookies = self.jar.get(&origin(url)).map(|cookies| {
            cookies.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("; ")
        });
        match cookies.filter(|cookies| !cookies.is_empty()) {
            Some(cookies) => request.header("Cookie", cookies),
            None => request,
        }
    }

    pub async fn send(&mut self, url: &str, request: RequestBuilder) -> Answer {
        let answer = send(request).await;
        self.keep(url, &answer.headers);
        answer
    }

    pub async fn get(&mut self, url: &str) -> Answer {
        let request = self.request(Method::GET, url);
        self.send(url, request).await
    }

    /// Follows redirects until there is a page, or `stop` says so of the next URL: that URL, and the last answer.
    pub async fn walk(&mut self, url: &str, stop: impl Fn(&str) -> bool) -> (String, Answer) {
        let (mut url, mut answer) = (url.to_owned(), self.get(url).await);
        for _ in 0..20 {
            if !(300..400).contains(&answer.status) {
                return (url, answer);
            }
            let next = Url::parse(&url).expect("a URL").join(answer.header("location")).expect("a URL");
            url = next.into();
            if stop(&url) {
                return (url, answer);
            }
            answer = self.get(&url).await;
        }
        panic!("too many redirects, to {url}");
    }

    /// Sends a page's form; the answer.
    pub async fn submit(&mut self, page: &Answer, fields: &[(&str, &str)]) -> (String, Answer) {
        let text = page.text();
        let action = text.split_once("action=\"").and_then(|(_, rest)| rest.split_once('"'));
        let action = action.unwrap_or_else(|| panic!("no form: {text}")).0.to_owned();
        let mut body = url::form_urlencoded::Serializer::new(String::new());
        body.extend_pairs(fields);
        let request = self
            .request(Method::POST, &action)
            .header("Content-Type", "application/x-www-form-urlencoded")
            .body(body.finish());
        let answer = self.send(&action, request).await;
        (action, answer)
    }

    fn keep(&mut self, url: &str, headers: &HeaderMap) {
        let cookies = self.jar.entry(origin(url)).or_default();
        for line in headers.get_all(SET_COOKIE) {
            let line = line.to_str().expect("ASCII");
            let (name, value) =
                line.split(';').next().and_then(|pair| pair.split_once('=')).expect("a cookie");
            let expired =
                line.contains("Max-Age=0") || line.to_lowercase().contains("expires=thu, 01 jan 1970");
            if expired {
                cookies.remove(name);
            } else {
                cookies.insert(name.to_owned(), value.to_owned());
            }
        }
    }
}

fn origin(url: &str) -> String {
    Url::parse(url).expect("a URL").origin().ascii_serialization()
}
