// uWebSockets' own publish/subscribe over WebSocket, and SSE by its HTTP responses: a loop to a thread.
// A publish goes to every loop, and there into the loop's topic tree: uWebSockets sends all messages of one turn of
// the loop to a reader at once.

#include <App.h>

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <barrier>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <vector>

#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE 2
#endif
#include <sys/syscall.h>

namespace {

constexpr int PING_AFTER_S = 32;  // uWebSockets pings 8 s before this ends: 24 s, as others ping after 25
constexpr size_t CHANNEL_BYTES_MAX = 64;
constexpr size_t BODY_BYTES_MAX = 64 * 1024;

using Response = uWS::HttpResponse<false>;

// A reader knows its place in its channel, so that leaving costs the same however many read.
struct StreamReader {
    Response *response;
    size_t *place;
};

struct Reader {
    std::string channel;
};

struct Worker {
    uWS::Loop *loop = nullptr;
    uWS::App *app = nullptr;
    std::unordered_map<std::string, std::vector<StreamReader>> streams;

    // Events of this turn, by channel.
    std::unordered_map<std::string, std::string> waiting;

    void deliver(const std::string &channel, const std::string &body) {
        app->publish(channel, body, uWS::OpCode::TEXT);
        if (streams.contains(channel)) waiting[channel].append("data: ").append(body).append("\n\n");
    }

    // At the end of a turn, as the topic tree does it: all events in one send, and nobody else is corked. While the
    // publisher's answer is, a stream cannot be, and each part of a chunk would be a send of its own.
    void send_waiting() {
        for (auto &[channel, events] : waiting) {
            auto found = streams.find(channel);
            if (found == streams.end()) continue;
            // Backwards: a reader that fails leaves, and the last one, already served, takes its place.
            auto &readers = found->second;
            for (size_t at = readers.size(); at-- > 0;) {
                auto *response = readers[at].response;
                response->cork([&] { response->write(events); });
            }
        }
        waiting.clear();
    }

    void leave(const std::string &channel, size_t place) {
        auto found = streams.find(channel);
        auto &readers = found->second;
        readers[place] = readers.back();
        *readers[place].place = place;
        readers.pop_back();
        if (readers.empty()) streams.erase(found);
    }

    void listen_stream(Response *response, std::string channel) {
        response->writeHeader("Content-Type", "text/event-stream")->writeHeader("Cache-Control", "no-cache");
        // The head leaves with the first bytes of the body.
        response->write(":\n\n");
        auto &readers = streams[channel];
        auto place = std::make_unique<size_t>(readers.size());
        readers.push_back({response, place.get()});
        response->onAborted([this, channel = std::move(channel), place = std::move(place)] { leave(channel, *place); });
    }
};

std::vector<std::unique_ptr<Worker>> workers;

void publish(const std::string &channel, const std::string &body, Worker *here) {
    for (auto &worker : workers) {
        if (worker.get() == here) {
            here->deliver(channel, body);
        } else {
            auto *there = worker.get();
            there->loop->defer([there, channel, body] { there->deliver(channel, body); });
        }
    }
}

void serve(int port, Worker *worker, std::barrier<> &all_have_loops) {
    worker->loop = uWS::Loop::get();
    all_have_loops.arrive_and_wait();
    if (workers.size() > 1) {
        // The limit of open files is a table's. Loops and their wake-ups were made before and are in every table.
        syscall(SYS_close_range, 1023u, ~0u, CLOSE_RANGE_UNSHARE);
    }
    uWS::App app;
    worker->app = &app;
    worker->loop->addPostHandler(worker, [worker](uWS::Loop *) { worker->send_waiting(); });
    app.ws<Reader>("/ws/:channel", {
        .compression = uWS::DISABLED,
        .maxPayloadLength = BODY_BYTES_MAX,
        .idleTimeout = PING_AFTER_S,
        .maxBackpressure = 1024 * 1024,
        .upgrade = [](auto *response, auto *request, auto *context) {
            Reader reader{std::string(request->getParameter(0))};
            response->template upgrade<Reader>(std::move(reader), request->getHeader("sec-websocket-key"),
                request->getHeader("sec-websocket-protocol"), request->getHeader("sec-websocket-extensions"), context);
        },
        .open = [](auto *socket) { socket->subscribe(socket->getUserData()->channel); },
        .message = [worker](auto *socket, std::string_view message, uWS::OpCode) {
            publish(socket->getUserData()->channel, std::string(message), worker);
        },
    });
    app.get("/sse/:channel", [worker](auto *response, auto *request) {
        worker->listen_stream(response, std::string(request->getParameter(0)));
    });
    app.post("/pub/:channel", [worker](auto *response, auto *request) {
        std::string channel(request->getParameter(0));
        if (channel.size() > CHANNEL_BYTES_MAX) {
            response->writeStatus("400 Bad Request")->end();
            return;
        }
        response->onAborted([] {});
        response->onData([worker, response, channel, body = std::string()](std::string_view part, bool last) mutable {
            if (body.size() + part.size() > BODY_BYTES_MAX) {
                response->close();
                return;
            }
            body.append(part);
            if (!last) return;
            publish(channel, body, worker);
            response->writeStatus("201 Created")->end();
        });
    });
    app.listen("127.0.0.1", port, 0, [port](us_listen_socket_t *socket) {
        if (!socket) {
            std::fprintf(stderr, "uwebsockets: port %d cannot be had\n", port);
            std::exit(1);
        }
        // uSockets asks for 512 waiting connections; a storm has more.
        ::listen(us_poll_fd(reinterpret_cast<us_poll_t *>(socket)), 65535);
    });
    app.run();
}

}  // namespace

int main(int argc, char **argv) {
    if (argc != 3) {
        std::fprintf(stderr, "usage: %s PORT WORKERS\n", argv[0]);
        return 2;
    }
    int port = std::atoi(argv[1]);
    size_t count = std::strtoul(argv[2], nullptr, 10);
    for (size_t at = 0; at < count; at++) workers.push_back(std::make_unique<Worker>());
    std::barrier all_have_loops(static_cast<std::ptrdiff_t>(count));
    std::vector<std::thread> threads;
    for (size_t at = 1; at < count; at++) {
        threads.emplace_back([&, at] { serve(port, workers[at].get(), all_have_loops); });
    }
    serve(port, workers[0].get(), all_have_loops);
}
