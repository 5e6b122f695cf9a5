//! Whose request it is: the connection's other end, or whom a trusted proxy names.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::http::{HeaderMap, header};

use crate::config::edge::{EdgeConfig, ForwardedHeader};

/// More proxies in a row than anybody has.
const HOPS: usize = 16;

/// Whoever has one IPv6 address has the 2^64 beside it.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

/// The client's address: going from the connection outwards, the first that is no trusted proxy's. What stands
/// further out was written by somebody whose word is not taken; so is all of it if the connection itself is not a
/// trusted proxy's.
pub(super) fn client(peer: IpAddr, headers: &HeaderMap, config: &EdgeConfig) -> IpAddr {
    let trusted = |address: IpAddr| config.trusted_proxies.iter().any(|network| network.contains(&address));
    let mut client = peer.to_canonical();
    if !trusted(client) {
        return client;
    }
    for hop in hops(headers, config.forwarded).into_iter().take(HOPS) {
        // Something that is no address: who is behind it is not known, and the proxy answers for it.
        let Some(address) = hop else { break };
        client = address;
        if !trusted(client) {
            break;
        }
    }
    client
}

/// What the header says, from the nearest hop outwards.
fn hops(headers: &HeaderMap, which: ForwardedHeader) -> Vec<Option<IpAddr>> {
    let (name, read): (_, fn(&str) -> Option<IpAddr>) = match which {
        ForwardedHeader::XForwardedFor => ("x-forwarded-for", address),
        ForwardedHeader::Forwarded => (header::FORWARDED.as_str(), forwarded_for),
    };
    let mut hops = Vec::new();
    let lines: Vec<_> = headers.get_all(name).iter().collect();
    for line in lines.into_iter().rev() {
        match line.to_str() {
            Ok(text) => hops.extend(text.rsplit(',').take(HOPS).map(|item| read(item.trim()))),
            Err(_) => hops.push(None),
        }
        if hops.len() >= HOPS {
            break;
        }
    }
    hops
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let alone = bare.parse::<IpAddr>().ok();
    let address = alone.or_else(|| text.parse::<SocketAddr>().ok().map(|both| both.ip()))?;
    Some(address.to_canonical())
}

/// The parameter `for` of one element of RFC 7239.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let mut values = element.split(';').filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then(|| value.trim())
    });
    let value = values.next()?;
    let quoted = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    address(quoted.unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use axum::http::{HeaderName, HeaderValue};

    use super::*;
    use crate::config::settings::Settings;

    fn config(proxies: &str, header: &str) -> EdgeConfig {
        let variables = BTreeMap::from([
            ("KAGE_API_TRUSTED_PROXIES".to_owned(), proxies.to_owned()),
            ("KAGE_API_FORWARDED_HEADER".to_owned(), header.to_owned()),
        ]);
        EdgeConfig::from_settings(&mut Settings::from_parts(variables, None).unwrap()).unwrap()
    }

    fn seen(config: &EdgeConfig, peer: &str, lines: &[(&'static str, &str)]) -> String {
        let line = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap())
        };
        let mut headers = HeaderMap::new();
        for (name, value) in lines.iter().map(line) {
            headers.append(name, value);
        }
        client(peer.parse().unwrap(), &headers, config).to_string()
    }

    #[test]
    fn what_a_stranger_says_of_himself_is_not_taken() {
        let none = config("", "x-forwarded-for");
        let proxied = config("10.0.0.0/8", "x-forwarded-for");
        let forged = [("x-forwarded-for", "1.1.1.1"), ("forwarded", "for=2.2.2.2"), ("x-real-ip", "3.3.3.3")];
        assert_eq!(seen(&none, "192.0.2.9", &forged), "192.0.2.9");
        assert_eq!(seen(&none, "127.0.0.1", &forged), "127.0.0.1");
        assert_eq!(seen(&proxied, "192.0.2.9", &forged), "192.0.2.9");
        assert_eq!(seen(&proxied, "::ffff:192.0.2.9", &forged), "192.0.2.9");
    }

    #[test]
    fn behind_a_proxy_it_is_the_rightmost_that_is_no_proxy() {
        let config = config("10.0.0.0/8,fd00::/16", "x-forwarded-for");
        for (lines, client) in [
            (&["192.0.2.9"][..], "192.0.2.9"),
            (&["1.1.1.1, 192.0.2.9"], "192.0.2.9"),
            (&["1.1.1.1", "192.0.2.9"], "192.0.2.9"),
            (&["1.1.1.1, 192.0.2.9, 10.0.0.7"], "192.0.2.9"),
            (&["10.3.3.3, 192.0.2.9, 10.0.0.7"], "192.0.2.9"),
            (&["192.0.2.9, 10.0.0.7", "fd00::7"], "192.0.2.9"),
            (&["192.0.2.9:4711"], "192.0.2.9"),
            (&["[2001:db8::1]:4711"], "2001:db8::1"),
            (&["2001:db8::1"], "2001:db8::1"),
            (&["::ffff:192.0.2.9"], "192.0.2.9"),
            // All are ours: the furthest.
            (&["10.0.0.9, 10.0.0.8"], "10.0.0.9"),
            // No address: nothing beyond it is believed.
            (&["1.1.1.1, unknown"], "10.0.0.1"),
            (&["1.1.1.1, "], "10.0.0.1"),
            (&["1.1.1.1", "\u{e9}"], "10.0.0.1"),
            (&["1.1.1.1, 127.1"], "10.0.0.1"),
            (&[], "10.0.0.1"),
        ] {
            let lines: Vec<_> = lines.iter().map(|line| ("x-forwarded-for", *line)).collect();
            assert_eq!(seen(&config, "10.0.0.1", &lines), client, "{lines:?}");
        }
        // The header that the proxy does not write comes from the client.
        assert_eq!(seen(&config, "10.0.0.1", &[("forwarded", "for=1.1.1.1")]), "10.0.0.1");
    }

    #[test]
    fn the_standard_header_is_read_as_the_standard_says() {
        let config = config("10.0.0.0/8", "forwarded");
        for (line, client) in [
            ("for=192.0.2.9", "192.0.2.9"),
            ("For=\"192.0.2.9:80\";proto=https;by=10.0.0.1", "192.0.2.9"),
            ("for=1.1.1.1, proto=https; for=\"[2001:db8::1]:80\"", "2001:db8::1"),
            ("for=\"a, for=1.1.1.1, for=192.0.2.9", "192.0.2.9"),
            ("for=1.1.1.1, for=_hidden", "10.0.0.1"),
            ("for=1.1.1.1, proto=https", "10.0.0.1"),
        ] {
            assert_eq!(seen(&config, "10.0.0.1", &[("forwarded", line)]), client, "{line}");
        }
        assert_eq!(seen(&config, "10.0.0.1", &[("x-forwarded-for", "1.1.1.1")]), "10.0.0.1");
    }
}
