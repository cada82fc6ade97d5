// encode_frames MODEL MMPROJ FRAMES WIDTH HEIGHT QUESTION TOKENS SHARE OUT [picture | SYSTEM NEXT]: what `vidkv ask` makes of raw
// RGB frames with LLaVA-OneVision, and `vidkv chat` of the question and NEXT after it; picture: of one frame as a picture.
// OUT.embeddings: f32 [visual tokens][width]; OUT.tokens: i32, the greedy answer; OUT.logprobs: f32 [1 + tokens][vocabulary];
// OUT.salient: i64, the cells of the SHARE of visual tokens that the question protects; OUT.first, OUT.second: i32, the answers
// of the chat.
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>

#include "engine/logs.h"
#include "engine/session.h"
#include "error.h"
#include "engine/llava_onevision_encoder.h"
#include "engine/saliency.h"

using namespace vidkv::cli;

namespace {

template <class T> void write(const std::string & path, const std::vector<T> & values) {
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char *>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(T)));
}

std::vector<unsigned char> read(const std::string & path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

EncodedVideo encode(const Model & model, const std::vector<unsigned char> & raw, uint32_t width, uint32_t height,
                    bool picture) {
    LlavaOnevisionEncoder encoder(model);
    if (picture) {
        encoder.add_picture({width, height, raw});
        return encoder.take();
    }
    const size_t size = size_t(3) * width * height;
    for (size_t at = 0; at + size <= raw.size(); at += size)
        encoder.add_frame({width, height, {&raw[at], &raw[at] + size}});
    encoder.end_video();
    return encoder.take();
}

// Two turns of a conversation.
void chat(Session & session, const std::string & question, const std::string & next, const std::string & out) {
    bool forgot = false;
    session.forget_turns();
    session.ask_next(
        question, [](const std::string &) {}, forgot);
    write(out + ".first", session.answer_tokens());
    session.ask_next(
        next, [](const std::string &) {}, forgot);
    write(out + ".second", session.answer_tokens());
}

void run(int argc, char ** argv) {
    ModelOptions options;
    if (argc == 12) options.system = argv[10];
    options.files = {argv[1], argv[2]};
    options.threads = 2;
    const KvChoice kv = parse_kv("f16");
    const Model model(options, kv);
    const EncodedVideo video = encode(model, read(argv[3]), static_cast<uint32_t>(std::atoi(argv[4])),
                                      static_cast<uint32_t>(std::atoi(argv[5])), argc == 11);
    SessionOptions session_options;
    session_options.max_tokens = std::atoi(argv[7]);
    session_options.threads = 2;
    session_options.conversation_tokens = 512;
    const std::string question = argv[6], out = argv[9];
    Session session(model, kv, session_options, video.tokens, {question});
    Progress progress(true);
    session.prefill(video, "frames", {}, progress);
    session.ask(question, [](const std::string &) {});
    const std::vector<llama_token> answer = session.answer_tokens();
    write(out + ".tokens", answer);
    write(out + ".logprobs", session.answer_distributions(question, answer));
    std::vector<float> embeddings;
    for (const Piece & piece : video.pieces)
        embeddings.insert(embeddings.end(), piece.embeddings.begin(), piece.embeddings.end());
    write(out + ".embeddings", embeddings);
    write(out + ".salient", salient_cells(model, video, {question}, std::atof(argv[8])));
    if (argc == 12) chat(session, question, argv[11], out);
}

} // namespace

int main(int argc, char ** argv) {
    if (argc < 10 || argc > 12) return 2;
    try {
        capture_logs(std::getenv("VERBOSE") != nullptr);
        run(argc, argv);
    } catch (const std::exception & error) {
        std::cerr << error.what() << "\n";
        return 1;
    }
    return 0;
}
