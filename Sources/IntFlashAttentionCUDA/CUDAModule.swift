internal import CAttentionKernels
import IntFlashAttention
import Synchronization

/// The kernels of one plan on one device, compiled and loaded.
@safe
final class CUDAModule: @unchecked Sendable {
  // Sendable: modules and functions may be used from any thread.
  let context: CUDAContext
  private let functions: [KernelSource.Entry: CUfunction]

  private struct Key: Hashable {
    let device: CUDADevice
    let source: KernelSource
  }
  private static let loaded = Mutex<[Key: CUDAModule]>([:])

  /// The module of this source; compiled and loaded once in a process.
  static func of(
    _ source: KernelSource,
    sharedByteCount: Int,
    on device: CUDADevice,
    cache: KernelCache
  ) throws(AttentionError) -> CUDAModule {
    let key = Key(device: device, source: source)
    if let module = loaded.withLock({ $0[key] }) { return module }
    // Outside the lock: other plans need not wait for a compilation. The first to finish stays.
    let module = try CUDAModule(source, sharedByteCount, device, cache)
    return loaded.withLock { loaded in
      if let first = loaded[key] { return first }
      loaded[key] = module
      return module
    }
  }

  private init(
    _ source: KernelSource,
    _ sharedByteCount: Int,
    _ device: CUDADevice,
    _ cache: KernelCache
  ) throws(AttentionError) {
    let context = try CUDAContext.of(device)
    self.context = context
    let compiler = try NVRTC.shared.get()
    let architecture = try compiler.architecture(for: device)
    let key =
      ([architecture, compiler.version.description] + NVRTC.options
      + [source.text] + KernelSource.files.map { "\($0.name)\n\($0.text)" })
      .joined(separator: "\n")
    func compile() throws(AttentionError) -> [UInt8] {
      try compiler.compile(
        source.text,
        files: KernelSource.files,
        architecture: architecture
      ).code
    }
    let stored = try cache.code(for: key, compile: compile)
    do throws(AttentionError) {
      unsafe functions = unsafe try Self.load(stored, source, sharedByteCount, context)
    } catch {
      // Whole, but not for this driver: as good as damaged.
      let fresh = try cache.replaceCode(for: key, compile: compile)
      unsafe functions = unsafe try Self.load(fresh, source, sharedByteCount, context)
    }
  }

  private static func load(
    _ code: [UInt8],
    _ source: KernelSource,
    _ sharedByteCount: Int,
    _ context: CUDAContext
  ) throws(AttentionError) -> [KernelSource.Entry: CUfunction] {
    unsafe try context.current { driver throws(AttentionError) in
      var module: CUmodule?
      let result = unsafe code.withUnsafeBytes {
        unsafe driver.cuModuleLoadData(&module, $0.baseAddress)
      }
      try context.check("cuModuleLoadData", result)
      var functions: [KernelSource.Entry: CUfunction] = unsafe [:]
      for entry in source.entries {
        var function: CUfunction?
        try context.check(
          "cuModuleGetFunction \(entry.name)",
          unsafe driver.cuModuleGetFunction(&function, module, entry.name)
        )
        unsafe functions[entry] = unsafe function
      }
      // 8: the largest dynamic shared memory; without it 48 KiB.
      try context.check(
        "cuFuncSetAttribute",
        unsafe driver.cuFuncSetAttribute(functions[.attend], 8, Int32(sharedByteCount))
      )
      return unsafe functions
    }
  }

  /// Starts a kernel with one argument; nothing where there are no blocks.
  func launch<Parameters>(
    _ entry: KernelSource.Entry,
    blocks: Int,
    splits: Int = 1,
    threads: Int = 256,
    sharedByteCount: Int = 0,
    _ parameters: Parameters,
    on stream: CUDAStream
  ) throws(AttentionError) {
    guard blocks > 0 else { return }
    guard blocks <= Int(Int32.max) else {
      throw AttentionError(.unsupported, "\(blocks) blocks are more than a CUDA grid can have")
    }
    let context = context
    let function = unsafe functions[entry]
    // Kernels read up to the next multiple of 64 bytes, see cuda_parameters.h.
    let size = MemoryLayout<Parameters>.size
    let copy = UnsafeMutableRawPointer.allocate(byteCount: (size + 63) / 64 * 64, alignment: 64)
    defer { unsafe copy.deallocate() }
    unsafe withUnsafeBytes(of: parameters) {
      unsafe UnsafeMutableRawBufferPointer(start: copy, count: size).copyMemory(from: $0)
    }
    try context.current { driver throws(AttentionError) in
      var arguments = unsafe [copy] as [UnsafeMutableRawPointer?]
      let result = unsafe driver.cuLaunchKernel(
        function,
        UInt32(blocks),
        UInt32(splits),
        1,
        UInt32(threads),
        1,
        1,
        UInt32(sharedByteCount),
        stream.handle,
        &arguments,
        nil
      )
      try context.check("cuLaunchKernel \(entry.name)", result)
    }
  }
}
