// What Ollama's JavaScript client does, at the address in GATEWAY_URL; ends with 0 when all of it is as it should be.
import assert from "node:assert/strict";
import { Ollama } from "ollama";

const client = new Ollama({ host: process.env.GATEWAY_URL });
const messages = [{ role: "user", content: "Say hello." }];
const options = { num_predict: 4, temperature: 0 };

const whole = await client.chat({ model: "chatty", messages, options });
assert.equal(whole.message.role, "assistant");
assert.ok(whole.message.content && whole.done && whole.eval_count > 0);

let text = "", last;
for await (const part of await client.chat({ model: "chatty", messages, options, stream: true })) {
  text += part.message.content;
  last = part;
}
assert.equal(text, whole.message.content);
assert.equal(last.done, true);

const completed = await client.generate({ model: "chatty", prompt: "The sky is", options });
assert.ok(completed.response);

const format = { type: "object", properties: { a: { type: "integer" } }, required: ["a"] };
const shaped = await client.chat({ model: "chatty", messages, format, options: { num_predict: 40, temperature: 0 } });
assert.ok(shaped.message.content.trimStart().startsWith("{"));

const { embeddings } = await client.embed({ model: "embedder", input: ["one", "two"] });
assert.equal(embeddings.length, 2);

const { models } = await client.list();
assert.deepEqual(models.map((each) => each.name).sort(), ["chatty:latest", "embedder:latest"]);
assert.ok((await client.show({ model: "chatty" })).capabilities.includes("completion"));
assert.ok(Array.isArray((await client.ps()).models));

const refused = async (asking, status, words) => {
  const error = await asking.then(() => assert.fail("it was not refused"), (error) => error);
  assert.equal(error.status_code, status);
  assert.match(error.message, words);
};
await refused(client.chat({ model: "nope", messages }), 404, /model 'nope' not found/);
await refused(client.chat({ model: "nope", messages, stream: true }), 404, /not found/);
await refused(client.chat({ model: "chatty", messages: "x" }), 400, /cannot unmarshal/);
await refused(client.chat({ model: "chatty", messages, format: "xml" }), 500, /valid JSON Schema/);

if (process.env.WITH_TOOLS) {
  const tools = [{ type: "function", function: { name: "get_weather", parameters: { type: "object", properties: {} } } }];
  const called = await client.chat({ model: "chatty", messages, tools });
  assert.equal(called.message.tool_calls[0].function.name, "get_weather");
}

const stream = await client.chat({ model: "chatty", messages, options: { num_predict: 400 }, stream: true });
setTimeout(() => stream.abort(), 50);
await assert.rejects(async () => {
  for await (const part of stream) if (part.done) throw new Error("it ended before it was stopped");
}, { name: "AbortError" }).catch((error) => {
  if (!/before it was stopped/.test(error.message + error.actual?.message)) throw error;  // a fast answer is none to stop
});
console.log("ok");
