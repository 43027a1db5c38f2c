// A closed loop of one of Node's clients: `node load.mjs http|fetch|fetch-pool|http2 URL`.
// Ends on SIGTERM, at the latest after 20 s, with a line of what happened; failures go to stderr.
import { subscribe } from "node:diagnostics_channel";
import http from "node:http";
import http2 from "node:http2";

const [kind, url] = process.argv.slice(2);
const WORKERS = 8;
const counts = { requests: 0, failed: 0, refused: 0, tolerated: 0 };
let running = true;

// What the server waits after an answer before it closes an idle connection: its default, in ms.
const SETTLE = 25;

const agent = new http.Agent({ keepAlive: true, maxSockets: WORKERS });
let session;

// A fetch may take any kept connection, and does not look whether it has ended since the event loop last ran. So it sends on
// connections that have received a FIN. Seen with strace on both sides (C: client, S: server; seconds):
//   S 22.559 writev     HTTP/1.1 200 OK
//   S 22.588 recvfrom   MSG_PEEK = EAGAIN
//   S 22.588 shutdown   SHUT_WR
//   C 22.593 write      GET / HTTP/1.1
//   C 22.608 read       "" = 0, fetch says `other side closed`
// What can be told from inside: the server can't have closed it unless SETTLE has passed since its last answer, so not if the
// request before was sent later than that. Of `http.Agent` the same is true.
const sentAt = new WeakMap(); // by socket
const sinceLast = new Map(); // by local port; for connections that fail
function sending(socket) {
  const now = performance.now();
  sinceLast.set(socket.localPort, now - (sentAt.get(socket) ?? now));
  sentAt.set(socket, now);
}
subscribe("undici:client:sendHeaders", ({ socket }) => sending(socket));

function isGivenUp(error) {
  const port = error.cause?.socket?.localPort ?? error.localPort;
  const closed = ["UND_ERR_SOCKET", "ECONNRESET", "EPIPE"].includes(error.cause?.code ?? error.code);
  return closed && sinceLast.get(port) >= SETTLE;
}

// The built-in `undici` has no name to import; its dispatcher is there once something was fetched.
await fetch("data:,");
const globalDispatcher = globalThis[Symbol.for("undici.globalDispatcher.1")];
const dispatcher = new globalDispatcher.constructor({ connections: WORKERS });

async function fetched(options) {
  const response = await fetch(url, options);
  return [response.status, await response.text()];
}

const clients = {
  http: () =>
    new Promise((resolve, reject) => {
      const request = http.get(url, { agent }, (response) => {
        let body = "";
        response.on("data", (part) => (body += part));
        response.on("end", () => resolve([response.statusCode, body]));
        // Without `end` the body was cut short.
        response.on("close", () => reject(new Error("the response was cut")));
      });
      let port;
      request.on("socket", (socket) => {
        const ready = () => {
          port = socket.localPort;
          sending(socket);
        };
        socket.connecting ? socket.once("connect", ready) : ready();
      });
      request.on("error", (error) => reject(Object.assign(error, { localPort: port })));
    }),

  // By default it opens as many connections as it likes, more than WORKERS: most of them are quiet.
  fetch: () => fetched({}),

  // With one for each worker hardly any is.
  "fetch-pool": () => fetched({ dispatcher }),

  http2: () =>
    new Promise((resolve, reject) => {
      if (!session || session.closed || session.destroyed) {
        session = http2.connect(url);
        session.on("error", () => {}); // its streams say the same
      }
      const stream = session.request({ ":path": "/" });
      let status;
      let body = "";
      stream.on("response", (headers) => (status = headers[":status"]));
      stream.on("data", (part) => (body += part));
      stream.on("end", () => resolve([status, body]));
      stream.on("error", reject);
      stream.on("close", () => reject(new Error(`the stream was cut, ${stream.rstCode}`)));
    }),
};

// Never sent, or by the protocol not processed (RFC 9113 section 8.7): to be sent again by whoever asked.
function isRefused(error) {
  const codes = [error, error.cause, ...(error.errors ?? [])].map((it) => it?.code);
  return (
    codes.includes("ECONNREFUSED") ||
    codes.includes("ERR_HTTP2_GOAWAY_SESSION") ||
    /NGHTTP2_REFUSED_STREAM/.test(error.message)
  );
}

async function work() {
  while (running) {
    try {
      const [status, body] = await clients[kind]();
      counts.requests += 1;
      if (counts.requests === 1) console.log("started");
      if (status !== 200 || body !== "hello\n") {
        throw new Error(`answered ${status} ${JSON.stringify(body.slice(0, 60))}`);
      }
    } catch (error) {
      if (isRefused(error)) {
        counts.refused += 1;
        await new Promise((resolve) => setTimeout(resolve, 5));
      } else if (isGivenUp(error)) {
        counts.tolerated += 1;
      } else {
        counts.failed += 1;
        console.error("failed", error.code ?? "", error.message, error.cause?.code ?? "");
      }
    }
  }
}

process.on("SIGTERM", () => (running = false));
setTimeout(() => (running = false), 20_000).unref();
await Promise.all(Array.from({ length: WORKERS }, work));
console.log(Object.entries(counts).flat().join(" "));
process.exit(0);
