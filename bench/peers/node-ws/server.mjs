// The library ws on Node, as a good engineer would write a broadcast: one process, no cluster, no compression.
// A message is framed once (`Sender.frame`, as socket.io does it) and the same bytes go to each reader's socket:
// `send` would make a header and two writes for each reader.

import http from 'node:http'
import { Sender, WebSocket, WebSocketServer } from 'ws'

const [port] = process.argv.slice(2).map(Number)
const pingEveryMs = 25_000
const bodyBytesMax = 64 * 1024
// A reader with so much unsent is cut off rather than let grow.
const unsentBytesMax = 16 * 1024 * 1024

/** @type {Map<string, Set<WebSocket>>} */
const wsReaders = new Map()
/** @type {Map<string, Set<http.ServerResponse>>} */
const sseReaders = new Map()

const join = (channels, channel, reader) => {
  const readers = channels.get(channel)
  if (readers) readers.add(reader)
  else channels.set(channel, new Set([reader]))
}

const leave = (channels, channel, reader) => {
  const readers = channels.get(channel)
  readers?.delete(reader)
  if (readers?.size === 0) channels.delete(channel)
}

const publish = (channel, body) => {
  const sockets = wsReaders.get(channel)
  if (sockets) {
    const frame = Buffer.concat(Sender.frame(body, { fin: true, rsv1: false, opcode: 1, mask: false, readOnly: true }))
    for (const reader of sockets) {
      const socket = reader._socket
      if (reader.readyState !== WebSocket.OPEN) continue
      if (socket.writableLength > unsentBytesMax) reader.terminate()
      else socket.write(frame)
    }
  }
  const streams = sseReaders.get(channel)
  if (streams) {
    const event = Buffer.concat([Buffer.from('data: '), body, Buffer.from('\n\n')])
    for (const reader of streams) {
      if (reader.writableLength > unsentBytesMax) reader.destroy()
      else reader.write(event)
    }
  }
}

const server = http.createServer((request, response) => {
  const [, kind, channel] = request.url.split('/')
  if (request.method === 'POST' && kind === 'pub' && channel) {
    const parts = []
    let bytes = 0
    request.on('data', part => {
      bytes += part.length
      if (bytes > bodyBytesMax) request.destroy()
      else parts.push(part)
    })
    request.on('end', () => {
      publish(channel, parts.length === 1 ? parts[0] : Buffer.concat(parts))
      response.writeHead(201, { 'Content-Length': 0 }).end()
    })
  } else if (request.method === 'GET' && kind === 'sse' && channel) {
    // Ended by closing, so that an event is written as it is and not as a chunk with its own length.
    response.useChunkedEncodingByDefault = false
    response.writeHead(200, { 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-cache', Connection: 'close' })
    response.write(':\n\n')
    join(sseReaders, channel, response)
    response.on('close', () => leave(sseReaders, channel, response))
  } else {
    response.writeHead(404, { 'Content-Length': 0 }).end()
  }
})
server.keepAliveTimeout = 3_600_000
server.requestTimeout = 0
server.maxRequestsPerSocket = 0

const wss = new WebSocketServer({ noServer: true, perMessageDeflate: false, clientTracking: true, maxPayload: bodyBytesMax })
server.on('upgrade', (request, socket, head) => {
  const [, kind, channel] = request.url.split('/')
  if (kind !== 'ws' || !channel) return socket.destroy()
  wss.handleUpgrade(request, socket, head, reader => {
    join(wsReaders, channel, reader)
    reader.on('message', body => publish(channel, body))
    reader.on('close', () => leave(wsReaders, channel, reader))
    reader.on('error', () => reader.terminate())
  })
})

// All at once: ws has no timer of its own, and its documentation shows exactly this.
setInterval(() => {
  for (const reader of wss.clients) reader.ping()
  for (const streams of sseReaders.values()) for (const reader of streams) reader.write(':\n')
}, pingEveryMs)

process.on('SIGTERM', () => process.exit(0))
server.listen({ port, host: '127.0.0.1', backlog: 65535 })
