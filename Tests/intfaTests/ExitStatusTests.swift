import AttentionTestSupport
import Foundation
import IntFlashAttention
import IntFlashAttentionCUDA
import TensorFiles
import Testing

@Suite struct ExitStatusTests {
  /// Arguments that cannot be, and words of the message that must say so.
  static let wrongUsage: [([String], String)] = [
    (["fly"], "fly"),
    (["bench", "--lengths", "1024,x"], "'x' must be a whole number of at least 1"),
    (["bench", "--lengths", "0"], "'0' must be a whole number of at least 1"),
    (["bench", "--precisions", "int8,int9"], "'int9' must be one of int8"),
    (["bench", "--query-heads", "6", "--kv-heads", "4"], "must be a multiple"),
    (["bench", "--head-dims", "64,257"], "--head-dims is 257; it must be between 1 and 256"),
    (["bench", "--repeat-seconds", "-1"], "--repeat-seconds"),
    (["bench", "--decode", "--query-length", "2"], "--decode is one query"),
    (["bench", "--batch", "0"], "--batch is 0; it must be at least 1"),
    (["paper", "--experiments", "speed,taste"], "'taste' must be one of error, speed"),
    (["paper", "--heads", "0"], "--heads is 0; it must be at least 1"),
    (["paper", "--seconds-per-length=-1"], "--seconds-per-length is -1"),
    (["explain", "--causal", "--window", "1,1"], "contradict each other"),
    (["explain", "--window", "1"], "two whole numbers"),
    (["explain", "--window", "-1,2"], "--window"),
    (["explain", "--softcap", "0"], "--softcap is 0.0; it must be positive"),
    (["explain", "--softmax-scale", "nan"], "--softmax-scale is nan; it must be finite"),
    (["explain", "--threads", "0"], "--threads is 0; it must be at least 1"),
    (["explain", "--isa", "sse9"], "--isa is 'sse9'"),
    (["bench", "--isa", "portable,sse9"], "--isa is 'sse9'"),
    (["explain", "--isa", "portable,portable"], "this verb takes one instruction set"),
    (["explain", "--backend", "tpu"], "tpu"),
    (["explain", "--backend", "reference", "--isa", "portable"], "--isa portable"),
    (["explain", "--backend", "cuda", "--threads", "2"], "--threads 2 is for the CPU"),
    (["explain", "--precision", "int9"], "int9"),
    (["check", "--inputs", "gaussian"], "'gaussian' must be one of normal, uniform, activations"),
    (["run", "in.safetensors"], "--output"),
    (["run", "-o", "out.safetensors"], "either IN.safetensors or all of"),
    (["run", "in.npy", "-o", "out.npy"], "'in.npy' is one array"),
    (["run", "in.safetensors", "-o", "/no/such/folder/out"], "no directory"),
    (["run", "in.safetensors", "-o", "o.npy", "--output-type", "bfloat16"], "bfloat16"),
    (["quantize", "in", "-o", "out", "--granularity", "block:0"], "block:N with N of at least 1"),
    (["quantize", "in", "-o", "out", "--groups", "1x1"], "--groups is for int4Progressive"),
    (
      ["quantize", "in", "-o", "out", "--code-type", "int4Clipped", "--granularity", "token"],
      "--granularity is for"
    ),
  ]

  @Test(arguments: wrongUsage)
  func wrongUsageIs64(arguments: [String], words: String) throws {
    let run = try CommandRun(arguments)
    #expect(run.status == 64)
    #expect(run.messages.contains(words), "\(run.messages)")
    #expect(run.output.isEmpty)
  }

  /// What is not here, and words of the message.
  static let unavailable: [([String], String)] = [
    (["explain", "--precision", "int4QueryKey"], "no kernel for this recipe"),
    (["bench", "--precisions", "int8,int4QueryKey"], "no kernel for this recipe"),
    (["explain", "--isa", missingInstructionSet], "--isa \(missingInstructionSet)"),
  ]

  /// No machine has both of these.
  private static var missingInstructionSet: String {
    InstructionSet.supported.contains { $0.rawValue.hasPrefix("neon") } ? "avx2" : "neoni8mm"
  }

  @Test(arguments: unavailable)
  func whatIsNotHereIs69(arguments: [String], words: String) throws {
    let run = try CommandRun(arguments)
    #expect(run.status == 69)
    #expect(run.messages.contains(words), "\(run.messages)")
    #expect(run.output.isEmpty)
  }

  @Test(
    .enabled(if: (try? CUDADevice.all()) == nil, "this machine has a GPU"),
    arguments: ["explain", "bench", "check"]
  )
  func cudaWithoutAGPUIs69(verb: String) throws {
    let run = try CommandRun(verb, "--backend", "cuda")
    #expect(run.status == 69)
    let sentence = "Error: --backend cuda is not available here: no CUDA driver: "
    #expect(run.messages.hasPrefix(sentence), "\(run.messages)")
    #expect(run.messages.split(separator: "\n").count == 1, "\(run.messages)")
    #expect(run.output.isEmpty)
  }

  @Test(.enabled(if: (try? CUDADevice.all()) == nil, "this machine has a GPU"))
  func runOnCUDAWithoutAGPUIs69AndWritesNothing() throws {
    let folder = try TemporaryFolder()
    try InputFiles.write(inputs(), to: folder.path("in.safetensors"))
    let output = folder.path("out.safetensors")
    let run = try CommandRun(
      "run",
      folder.path("in.safetensors"),
      "-o",
      output,
      "--backend",
      "cuda"
    )
    #expect(run.status == 69)
    #expect(!FileManager.default.fileExists(atPath: output))
  }

  @Test func unknownNameInTheEnvironmentIs64() throws {
    let run = try CommandRun("explain", environment: ["INTFA_ISA": "sse9"])
    #expect(run.status == 64)
    #expect(run.messages.contains("INTFA_ISA is 'sse9'"))
  }

  // MARK: Data

  private func inputs() throws -> TestInputs { TestInputs(try InputFiles.shape()) }

  private func expectBadData(
    _ folder: TemporaryFolder,
    _ words: String,
    sourceLocation: SourceLocation = #_sourceLocation
  ) throws {
    let output = folder.path("out.safetensors")
    let run = try CommandRun("run", folder.path("in.safetensors"), "-o", output)
    #expect(run.status == 65, sourceLocation: sourceLocation)
    #expect(run.messages.contains(words), "\(run.messages)", sourceLocation: sourceLocation)
    #expect(run.output.isEmpty, sourceLocation: sourceLocation)
    #expect(!FileManager.default.fileExists(atPath: output), sourceLocation: sourceLocation)
  }

  @Test func missingFileIs65() throws {
    try expectBadData(TemporaryFolder(), "cannot open")
  }

  @Test func truncatedFileIs65() throws {
    let folder = try TemporaryFolder()
    let path = folder.path("in.safetensors")
    try InputFiles.write(inputs(), to: path)
    let bytes = try folder.bytes("in.safetensors")
    try bytes.dropLast(4).write(to: URL(filePath: path))
    try expectBadData(folder, "tensor \"v\" ends at byte")
  }

  @Test func lyingHeaderIs65() throws {
    let folder = try TemporaryFolder()
    let header = #"{"q":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,16]}}"#
    let length = (0..<8).map { UInt8(truncatingIfNeeded: header.utf8.count >> (8 * $0)) }
    let bytes = Data(length) + Data(header.utf8) + Data(count: 16)
    try bytes.write(to: URL(filePath: folder.path("in.safetensors")))
    try expectBadData(folder, "its size in bits is above")
  }

  @Test func missingTensorIs65() throws {
    let folder = try TemporaryFolder()
    var writer = SafetensorsWriter()
    let tensor = try Tensor([1, 2], shape: [1, 1, 2])
    writer.add("q", tensor.view)
    try writer.write(to: folder.path("in.safetensors"))
    try expectBadData(folder, "no tensor \"k\"; there is \"q\"")
  }

  @Test(arguments: [Float.nan, .infinity])
  func nonFiniteInputIs65(value: Float) throws {
    let folder = try TemporaryFolder()
    var inputs = try inputs()
    inputs.key[17] = value
    try InputFiles.write(inputs, to: folder.path("in.safetensors"))
    try expectBadData(folder, "key at batch 0, head 0, token 1, channel 1 is \(value)")
  }

  @Test func headsThatDoNotDivideAre65() throws {
    let folder = try TemporaryFolder()
    var writer = SafetensorsWriter()
    for (name, heads) in [("q", 3), ("k", 2), ("v", 2)] {
      let tensor = try Tensor(.float32, shape: [heads, 5, 8])
      writer.add(name, tensor.view)
    }
    try writer.write(to: folder.path("in.safetensors"))
    try expectBadData(folder, "3 query heads cannot share 2 key/value heads")
  }

  @Test func sizesOutOfRangeAre65() throws {
    let folder = try TemporaryFolder()
    var writer = SafetensorsWriter()
    for name in ["q", "k", "v"] {
      let tensor = try Tensor(.float32, shape: [1, 2, 300])
      writer.add(name, tensor.view)
    }
    try writer.write(to: folder.path("in.safetensors"))
    try expectBadData(folder, "headDimension is 300; it must be between 1 and 256")
  }

  @Test(arguments: [["scale": "much"], ["causal": "perhaps"]])
  func metadataThatIsNoOptionIs65(metadata: [String: String]) throws {
    let folder = try TemporaryFolder()
    try InputFiles.write(inputs(), to: folder.path("in.safetensors"), metadata: metadata)
    let words = metadata.map { "metadata \($0.key) is '\($0.value)'" }
    try expectBadData(folder, words[0])
  }

  @Test func interruptIs130() throws {
    let process = try CommandRun.process(["bench", "--lengths", "16384", "--quiet"])
    process.standardOutput = FileHandle.nullDevice
    try process.run()
    // The handler is installed before anything else; a second is ample for a process to start.
    Thread.sleep(forTimeInterval: 1)
    process.interrupt()
    for _ in 0..<100 where process.isRunning { Thread.sleep(forTimeInterval: 0.1) }
    if process.isRunning { process.terminate() }
    process.waitUntilExit()
    #expect(process.terminationReason == .exit)
    #expect(process.terminationStatus == 130)
  }
}
