// A program of somebody who uses fal's JavaScript client: each of its methods once, told as JSON.
// What `client-env --js` printed stands before it.

const app = "tester/talk";
const input = { word: "hi", seconds: 0.3 };

const submit = async (input) => (await fal.queue.submit(app, { input, hint: "h" })).request_id;

const finished = async () => {
  const requestId = await submit(input);
  await fal.queue.subscribeToStatus(app, { requestId, pollInterval: 50 });
  return requestId;
};

const subscribe = async (options) => {
  const updates = [];
  const onQueueUpdate = (status) => updates.push(status);
  const { data } = await fal.subscribe(app, { input, logs: true, onQueueUpdate, ...options });
  return { data, updates };
};

const calls = {
  run: async () => (await fal.run(app, { input })).data,
  submit: () => fal.queue.submit(app, { input }),
  status: async () => fal.queue.status(app, { requestId: await finished(), logs: true }),
  result: async () => (await fal.queue.result(app, { requestId: await finished() })).data,
  cancel: async () => {
    const first = await submit({ word: "long", seconds: 1 });
    while ((await fal.queue.status(app, { requestId: first })).status === "IN_QUEUE");
    const requestId = await submit(input);
    await fal.queue.cancel(app, { requestId });
    return fal.queue.result(app, { requestId }).catch((error) => error.status);
  },
  polling: () => subscribe({ mode: "polling", pollInterval: 50 }),
  streaming: () => subscribe({ mode: "streaming" }),
  stream: async () => {
    const stream = await fal.stream("tester/count", { input: { n: 3 } });
    const values = [];
    for await (const value of stream) values.push(value);
    return values;
  },
  upload: async () => {
    const url = await fal.storage.upload(new Blob(["hello"], { type: "text/plain" }));
    const answer = await fetch(url);
    return [answer.headers.get("content-type"), await answer.text()];
  },
  multipart: async () => {
    const content = Buffer.alloc(91 * 1024 * 1024, "ab");
    const url = await fal.storage.upload(new File([content], "big.mp4", { type: "video/mp4" }));
    const answer = await fetch(url);
    const same = content.equals(Buffer.from(await answer.arrayBuffer()));
    return [answer.headers.get("content-type"), url.endsWith("/big.mp4"), same];
  },
};

process.on("unhandledRejection", () => {}); // of a stream that fails; its outcome tells

const outcomes = {};
for (const [name, call] of Object.entries(calls)) {
  outcomes[name] = await call().catch((error) => ({ error: String(error) }));
}
console.log(JSON.stringify(outcomes));
