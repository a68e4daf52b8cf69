// A model through node-llama-cpp, greedily: prompts as they are written, and questions in a chat with a system message.
// Takes {model, prompts, questions, system, mostTokens} as JSON in its one argument; prints one JSON object.
import {getLlama, getModuleVersion, LlamaChatSession} from "node-llama-cpp";

const {model: modelPath, prompts, questions, system, mostTokens} = JSON.parse(process.argv[2]);
const llama = await getLlama({gpu: false, build: "never", skipDownload: true});
const model = await llama.loadModel({modelPath, gpuLayers: 0});
const context = await model.createContext({contextSize: 1024, threads: 1});
const sequence = context.getSequence();

async function continuePrompt(prompt) {
    const said = [];
    await sequence.clearHistory();
    for await (const token of sequence.evaluate(model.tokenize(prompt, true), {temperature: 0})) {
        if (model.isEogToken(token) || said.length === mostTokens) break;
        said.push(token);
    }
    return model.detokenize(said);
}

async function chat(question) {
    await sequence.clearHistory();
    const session = new LlamaChatSession({contextSequence: sequence, systemPrompt: system});
    const answer = await session.prompt(question, {temperature: 0, maxTokens: mostTokens});
    session.dispose({disposeSequence: false});
    return answer;
}

const found = {
    version: await getModuleVersion(),
    llamaCpp: llama.llamaCppRelease.release,
    general: model.fileInfo.metadata.general,
    bytes: model.size,
    continued: [],
    answers: []
};
for (const prompt of prompts) found.continued.push(await continuePrompt(prompt));
for (const question of questions) found.answers.push(await chat(question));
console.log(JSON.stringify(found, (_, value) => (typeof value === "bigint" ? Number(value) : value)));
await llama.dispose();
