// A provider for tests: whoever signs in is believed, and the name says in what groups he is. `alice+dev+ops` is
// alice, in dev and ops.
import { generateKeyPairSync, randomBytes } from "node:crypto";
import { createServer } from "node:http";
import { Provider } from "oidc-provider";

const { PORT, CLIENT_ID, CLIENT_SECRET, PUBLIC_URL } = process.env;
const issuer = `http://127.0.0.1:${PORT}`;

const { privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
const key = { ...privateKey.export({ format: "jwk" }), use: "sig", alg: "RS256", kid: randomBytes(8).toString("hex") };

const provider = new Provider(issuer, {
  clients: [
    {
      client_id: CLIENT_ID,
      client_secret: CLIENT_SECRET,
      redirect_uris: [`${PUBLIC_URL}/auth/oidc/callback`],
      grant_types: ["authorization_code"],
      response_types: ["code"],
    },
  ],
  jwks: { keys: [key] },
  cookies: { keys: [randomBytes(32).toString("hex")] },
  claims: { openid: ["sub"], profile: ["preferred_username", "groups"] },
  // Groups in the ID token, or only where the client asks for user info.
  conformIdTokenClaims: process.env.CONFORM === "true",
  pkce: { required: () => true },
  features: { devInteractions: { enabled: true }, rpInitiatedLogout: { enabled: true } },
  async findAccount(_, id) {
    const [name, ...groups] = id.split("+");
    return { accountId: id, claims: () => ({ sub: id, preferred_username: name, groups }) };
  },
});
createServer(provider.callback()).listen(Number(PORT), "127.0.0.1", () => console.log("provider.listening"));
