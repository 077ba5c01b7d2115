// Prints failures and dead letters, one JSON object a line, with @platformatic/kafka (npm install @platformatic/kafka@1).
//
//   node read.mjs BROKERS TOPIC…
//
// A dead letter that came in parts is joined. It ends when nothing has come for five seconds.
import { randomUUID } from 'node:crypto'
import { Consumer } from '@platformatic/kafka'

const [brokers, ...topics] = process.argv.slice(2)
const consumer = new Consumer({
  clientId: 'rebound-example-node',
  groupId: `rebound-example-node-${randomUUID()}`,
  bootstrapBrokers: brokers.split(',')
})
// The isolation level leaves out what a crash has cut short: 1 is read_committed.
const stream = await consumer.consume({ topics, mode: 'earliest', isolationLevel: 1, autocommit: false, maxWaitTime: 500 })

let idle
const begun = new Map()
const wait = () => {
  clearTimeout(idle)
  idle = setTimeout(() => stream.close(), 5000)
}
wait()
for await (const message of stream) {
  wait()
  const headers = Object.fromEntries([...message.headers].map(([name, value]) => [name.toString(), value.toString()]))
  const { part, parts = '1', ...rest } = headers
  const id = `${headers.id} ${headers.run}`
  const values = [...(begun.get(id) ?? []), message.value]
  if (values.length < Number(parts)) {
    begun.set(id, values)
    continue
  }
  begun.delete(id)
  print(message.topic, message.key.toString(), rest, Buffer.concat(values))
}
await consumer.close()

function print (topic, key, headers, value) {
  const text = value.toString()
  // A dead letter is what FullStory sent, whatever that was.
  const shown = Buffer.from(text).equals(value) ? { value: text } : { value_base64: value.toString('base64') }
  process.stdout.write(JSON.stringify({ topic, key, headers, ...shown }) + '\n')
}
