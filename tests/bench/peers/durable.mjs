// The reference server of durable-streams as it comes, in memory.  Usage: durable.mjs PORT
import { DurableStreamTestServer } from '@durable-streams/server';

const server = new DurableStreamTestServer({ port: +process.argv[2], host: '127.0.0.1' });
await server.start();
