// FullStory's own Node client, unchanged, against the simulated API: it creates an import, polls it, and reads its
// errors page by page to the end.
//
//   NODE_ENV=test FS_API_HOST=http://127.0.0.1:8081 node .ci/node-client.cjs FAILURES
'use strict';
const assert = require('node:assert');
const { init } = require('@fullstory/server-api-client');

const failures = Number(process.argv[2] || 2345);
const client = init({ apiKey: 'Basic simulated' });
const requests = [];
for (let i = 0; i < failures; i++) requests.push({ display_name: `no uid ${i}`, properties: { index: i } });
for (let i = 0; i < 100; i++) requests.push({ uid: `fine-${i}`, email: `fine-${i}@example.com` });
requests.push({ uid: 'x'.repeat(257) }, { uid: 'bad-email', email: 'nobody' }, { uid: 'big', properties: { p: 'y'.repeat(9000) } });

const job = client.users.batchCreate({ body: { requests } }, { pollInterval: 200 });
const deadline = setTimeout(() => { console.error('no end after 60 s'); process.exit(1); }, 60_000);
job.on('error', (e) => { console.error(e); process.exit(1); });
job.on('abort', (e) => { console.error('aborted', e); process.exit(1); });
job.on('done', (imported, failed) => {
  clearTimeout(deadline);
  assert.strictEqual(failed.length, failures + 3);
  for (let i = 0; i < failures; i++) {
    assert.strictEqual(failed[i].code, 'required_field');
    assert.strictEqual(failed[i].message, 'uid is required');
    assert.deepStrictEqual(failed[i].user, requests[i]);
  }
  assert.deepStrictEqual(failed.slice(failures).map((f) => f.code), ['too_long', 'invalid_email', 'property_too_large']);
  console.log(`job ${job.getId()}: the Node client read ${failed.length} failures, as many as there are`);
});
job.execute();
