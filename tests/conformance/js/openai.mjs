// What OpenAI's JavaScript client does, at the address in GATEWAY_URL; ends with 0 when all of it is as it should be.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.env.GATEWAY_URL.replace(/\/$/, "")}/v1`, apiKey: "none", maxRetries: 0 });
const model = "chatty";
const messages = [{ role: "user", content: "Say hello." }];
const short = { max_tokens: 4, temperature: 0 };

const whole = await client.chat.completions.create({ model, messages, ...short });
assert.equal(whole.choices[0].message.role, "assistant");
assert.ok(whole.choices[0].message.content && whole.usage.completion_tokens > 0);

let text = "", last;
const parts = await client.chat.completions.create({
  model, messages, ...short, stream: true, stream_options: { include_usage: true },
});
for await (const part of parts) {
  text += part.choices[0]?.delta.content ?? "";
  last = part;
}
assert.equal(text, whole.choices[0].message.content);
assert.equal(last.usage.completion_tokens, whole.usage.completion_tokens);

// The client puts a stream together by itself, tool calls included.
const gathered = await client.chat.completions.stream({ model, messages, ...short }).finalChatCompletion();
assert.equal(gathered.choices[0].message.content, text);

const several = await client.chat.completions.create({ model, messages, ...short, n: 2 });
assert.deepEqual(several.choices.map((each) => each.index), [0, 1]);

const completed = await client.completions.create({ model, prompt: "The sky is", ...short });
assert.equal(typeof completed.choices[0].text, "string");

const schema = { type: "object", properties: { a: { type: "integer" } }, required: ["a"] };
const shaped = await client.chat.completions.create({
  model, messages, max_tokens: 40, temperature: 0,
  response_format: { type: "json_schema", json_schema: { name: "x", schema } },
});
assert.ok(shaped.choices[0].message.content.trimStart().startsWith("{"));

const response = await client.responses.create({ model, input: "Say hello.", max_output_tokens: 4, temperature: 0 });
assert.ok(response.output_text);
let said = "", ended = "";
for await (const event of await client.responses.create({
  model, input: "Say hello.", max_output_tokens: 4, temperature: 0, stream: true,
})) {
  if (event.type === "response.output_text.delta") said += event.delta;
  ended = event.type;
}
assert.equal(said, response.output_text);
assert.match(ended, /^response\.(completed|incomplete)$/);

// By default the client asks for base64 and unpacks it.
const vectors = await client.embeddings.create({ model: "embedder", input: ["one", "two"] });
assert.equal(vectors.data.length, 2);
const plain = await client.embeddings.create({ model: "embedder", input: ["one", "two"], encoding_format: "float" });
vectors.data[1].embedding.forEach((value, at) => assert.ok(Math.abs(value - plain.data[1].embedding[at]) < 1e-6));

const listed = [];
for await (const each of client.models.list()) listed.push(each.id);
assert.deepEqual(listed.sort(), ["chatty:latest", "embedder:latest"]);
assert.equal((await client.models.retrieve(model)).id, model);

const refused = async (asking, kind, code, words) => {
  const error = await asking.then(() => assert.fail("it was not refused"), (error) => error);
  assert.ok(error instanceof kind, `${error}`);
  assert.equal(error.code, code);
  assert.match(error.message, words);
};
await refused(client.chat.completions.create({ model: "nope", messages }), OpenAI.NotFoundError, "model_not_found", /not found/);
await refused(client.chat.completions.create({ model: "nope", messages, stream: true }), OpenAI.NotFoundError, "model_not_found", /not found/);
await refused(client.chat.completions.create({ model, messages: [] }), OpenAI.BadRequestError, null, /messages/);
await refused(client.models.retrieve("nope"), OpenAI.NotFoundError, "model_not_found", /not found/);

if (process.env.WITH_TOOLS) {
  const tools = [{ type: "function", function: { name: "get_weather", parameters: { type: "object", properties: {} } } }];
  const called = await client.chat.completions.create({ model, messages, tools });
  const call = called.choices[0].message.tool_calls[0];
  assert.equal(call.function.name, "get_weather");
  assert.equal(called.choices[0].finish_reason, "tool_calls");
  const streamed = await client.chat.completions.stream({ model, messages, tools }).finalChatCompletion();
  assert.equal(streamed.choices[0].message.tool_calls[0].function.name, "get_weather");
}

// Breaking out of the loop aborts the request.
const long = await client.chat.completions.create({ model, messages, max_tokens: 400, stream: true });
for await (const part of long) {
  assert.notEqual(part.choices[0]?.finish_reason, "stop");
  break;
}
assert.ok(long.controller.signal.aborted);
console.log("ok");
